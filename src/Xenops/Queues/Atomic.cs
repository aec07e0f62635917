// What an operation on a VM is made of, as data: what is going to be done can be looked at, compared and tested before anything is done
// (research: xenopsd.md 2.3 to 2.5). Names are the field's.
using System.Text;

namespace Xenops.Queues;

public abstract record Atomic
{
    /// <summary>How long whoever waits for it waits, at most (research: xenopsd.md 2.3).</summary>
    public abstract TimeSpan Expiry { get; }

    /// <summary>All steps in it, in order.</summary>
    public abstract IEnumerable<Step> Steps { get; }

    /// <summary>One line for each step or group, members indented under their group.</summary>
    public static string Text(IEnumerable<Atomic> atomics)
    {
        StringBuilder text = new();
        foreach (Atomic atomic in atomics)
            atomic.WriteTo(text, 0);
        return text.ToString();
    }

    internal abstract void WriteTo(StringBuilder text, int depth);
}

/// <summary>The smallest thing that is done, cancelled, and paid for.</summary>
/// <param name="Verb">The field's name, as <c>VBD_plug</c>.</param>
/// <param name="Target">The VM's id, or the device's.</param>
/// <param name="Arguments">In the field's order.</param>
public sealed record Step(string Verb, string Target, string Arguments = "") : Atomic
{
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(1200);

    public override TimeSpan Expiry => Limit;

    public override IEnumerable<Step> Steps => [this];

    /// <summary>A VM's memory takes as long as ten other steps: for progress.</summary>
    public int Weight => Verb is "VM_save" or "VM_restore" ? 10 : 1;

    internal override void WriteTo(StringBuilder text, int depth) =>
        text.Append(' ', depth * 2).Append(Verb).Append(' ').Append(Target).Append(Arguments.Length > 0 ? " " : "").Append(Arguments).Append('\n');
}

public enum GroupKind
{
    /// <summary>One after the other, by whoever holds the VM.</summary>
    Serial,

    /// <summary>At once, ten at a time, by the workers of the class for them.</summary>
    Parallel,

    /// <summary>The same inside a parallel one: another class of workers, or parents and children would wait for each other.</summary>
    NestedParallel,

    /// <summary>Whatever it throws is swallowed.</summary>
    BestEffort,
}

public sealed record Group(GroupKind Kind, string Description, IReadOnlyList<Atomic> Members) : Atomic
{
    public const int ChunkSize = 10;

    public override TimeSpan Expiry => Kind is GroupKind.Parallel or GroupKind.NestedParallel
        ? Sum(Members.Chunk(ChunkSize).Select(static chunk => chunk.Max(static m => m.Expiry)))
        : Sum(Members.Select(static m => m.Expiry));

    public override IEnumerable<Step> Steps => Members.SelectMany(static m => m.Steps);

    /// <summary>Nothing for nothing, the thing itself for one: only two and more are worth a group.</summary>
    public static IEnumerable<Atomic> Of(GroupKind kind, string description, IEnumerable<Atomic> members)
    {
        Atomic[] all = [.. members];
        return all.Length < 2 ? all : [new Group(kind, description, all)];
    }

    internal override void WriteTo(StringBuilder text, int depth)
    {
        text.Append(' ', depth * 2).Append(Kind).Append(Description.Length > 0 ? $" \"{Description}\"" : "").Append('\n');
        foreach (Atomic member in Members)
            member.WriteTo(text, depth + 1);
    }

    private static TimeSpan Sum(IEnumerable<TimeSpan> times) => times.Aggregate(TimeSpan.Zero, static (a, b) => a + b);
}
