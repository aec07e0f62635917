// The automaton against the field's tables (research/storage.md 2.3), every cell, and its laws over every pair of datapaths.
using StorageAccess;

namespace Unit.StorageAccessTests;

public sealed class VdiAutomatonTests
{
    private static readonly VdiState[] States =
    [
        VdiState.Detached, new(VdiPhase.Attached, VdiAccess.ReadOnly), new(VdiPhase.Attached, VdiAccess.ReadWrite),
        new(VdiPhase.Activated, VdiAccess.ReadOnly), new(VdiPhase.Activated, VdiAccess.ReadWrite),
    ];

    // Rows: the states above; columns: attach RO, attach RW, activate, deactivate, detach. "!" is an error.
    private static readonly string[][] Table =
    [
        ["Attached(RO)", "Attached(RW)", "!", "Detached", "Detached"],
        ["Attached(RO)", "!", "Activated(RO)", "Attached(RO)", "Detached"],
        ["Attached(RW)", "Attached(RW)", "Activated(RW)", "Attached(RW)", "Detached"],
        ["Activated(RO)", "!", "Activated(RO)", "Attached(RO)", "!"],
        ["Activated(RW)", "Activated(RW)", "Activated(RW)", "Attached(RW)", "!"],
    ];

    [Fact]
    public void Every_state_and_operation_is_as_in_the_fields_table()
    {
        for (int row = 0; row < States.Length; row++)
        {
            foreach (DatapathOperation operation in Enum.GetValues<DatapathOperation>())
                Assert.Equal(Table[row][(int)operation], Applied(States[row], operation));
        }
    }

    [Fact]
    public void An_operation_repeated_changes_nothing()
    {
        foreach (VdiState state in States)
        {
            foreach (DatapathOperation operation in Enum.GetValues<DatapathOperation>())
            {
                if (Applied(state, operation) == "!")
                    continue;
                VdiState once = VdiAutomaton.Apply(state, operation);
                Assert.Equal(once, VdiAutomaton.Apply(once, operation));
            }
        }
    }

    [Fact]
    public void The_superstate_is_the_furthest_phase_and_writable_when_any_datapath_is()
    {
        Assert.Equal(VdiState.Detached, VdiAutomaton.Superstate([]));
        foreach (VdiState one in States)
        {
            foreach (VdiState other in States)
            {
                VdiState all = VdiAutomaton.Superstate([one, other]);
                Assert.Equal(one.Phase > other.Phase ? one.Phase : other.Phase, all.Phase);
                bool isWritable = new[] { one, other }.Any(static s => s is { Phase: not VdiPhase.Detached, Access: VdiAccess.ReadWrite });
                Assert.Equal(isWritable ? VdiAccess.ReadWrite : VdiAccess.ReadOnly, all.Access);
                Assert.Equal(all, VdiAutomaton.Superstate([other, one]));
            }
        }
    }

    [Theory]
    [InlineData(0, 0, "")]
    [InlineData(0, 1, "Attach")]
    [InlineData(0, 2, "Attach")]
    [InlineData(0, 3, "Attach,Activate")]
    [InlineData(0, 4, "Attach,Activate")]
    [InlineData(1, 0, "Detach")]
    [InlineData(2, 0, "Detach")]
    [InlineData(1, 3, "Activate")]
    [InlineData(2, 4, "Activate")]
    [InlineData(3, 1, "Deactivate")]
    [InlineData(4, 2, "Deactivate")]
    [InlineData(3, 0, "Deactivate,Detach")]
    [InlineData(4, 0, "Deactivate,Detach")]
    [InlineData(1, 2, null)]
    [InlineData(2, 1, null)]
    [InlineData(1, 4, null)]
    [InlineData(3, 4, null)]
    [InlineData(4, 3, null)]
    [InlineData(4, 1, null)]
    public void The_backend_operations_between_superstates_are_the_fields(int from, int to, string? operations) =>
        Assert.Equal(operations, VdiAutomaton.Operations(States[from], States[to]) is { } some ? string.Join(",", some) : null);

    /// <summary>A backend that only knows attach, activate, deactivate and detach ends where the datapath table says, whatever two datapaths do.</summary>
    [Fact]
    public void The_backend_follows_every_pair_of_datapaths_through_every_operation()
    {
        foreach (VdiState one in States)
        {
            foreach (VdiState other in States)
            {
                foreach (DatapathOperation operation in Enum.GetValues<DatapathOperation>())
                {
                    if (Applied(one, operation) == "!")
                        continue;
                    VdiState before = VdiAutomaton.Superstate([one, other]);
                    VdiState after = VdiAutomaton.Superstate([VdiAutomaton.Apply(one, operation), other]);
                    IReadOnlyList<BackendOperation>? operations = VdiAutomaton.Operations(before, after);
                    bool changesAccess = before.Phase != VdiPhase.Detached && after.Phase != VdiPhase.Detached && before.Access != after.Access;
                    Assert.Equal(changesAccess, operations is null);
                    if (operations is not null)
                        Assert.Equal(after, Run(before, operations, after.Access));
                }
            }
        }
    }

    [Fact]
    public void A_repair_reaches_its_target_from_every_state_that_the_backend_may_be_in()
    {
        foreach (VdiState target in States)
        {
            foreach (VdiPhase phase in Enum.GetValues<VdiPhase>())
            {
                VdiState unknown = phase == VdiPhase.Detached ? VdiState.Detached : new VdiState(phase, target.Access);
                Assert.Equal(target, Run(unknown, VdiAutomaton.Repair(target), target.Access));
            }
        }
    }

    private static VdiState Run(VdiState state, IReadOnlyList<BackendOperation> operations, VdiAccess access)
    {
        foreach (BackendOperation operation in operations)
        {
            state = operation switch
            {
                BackendOperation.Attach when state.Phase == VdiPhase.Detached => new VdiState(VdiPhase.Attached, access),
                BackendOperation.Activate when state.Phase == VdiPhase.Attached => state with { Phase = VdiPhase.Activated },
                BackendOperation.Deactivate when state.Phase == VdiPhase.Activated => state with { Phase = VdiPhase.Attached },
                BackendOperation.Detach when state.Phase == VdiPhase.Attached => VdiState.Detached,
                _ => state,
            };
        }

        return state;
    }

    private static string Applied(VdiState state, DatapathOperation operation)
    {
        try
        {
            return VdiAutomaton.Apply(state, operation).ToString();
        }
        catch (StorageException e)
        {
            Assert.Equal("Illegal_transition", e.Tag);
            return "!";
        }
    }
}
