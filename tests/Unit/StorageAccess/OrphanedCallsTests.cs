// Driver calls that outlived their daemon: real processes, told apart by mark, program and what they serve.
using System.Diagnostics;
using Platform;
using StorageAccess;
using Support;

namespace Unit.StorageAccessTests;

public sealed class OrphanedCallsTests : IDisposable
{
    private readonly TemporaryDirectory folder = new();
    private readonly List<Process> started = [];

    public void Dispose()
    {
        foreach (Process process in started)
        {
            ProcessTable.KillSession(process.Id);
            process.WaitForExit();
            process.Dispose();
        }

        folder.Dispose();
    }

    [Fact]
    public async Task A_call_that_does_not_end_is_ended_with_what_it_started_and_nobody_else_is()
    {
        int orphan = Start("sm/OneSR", "state"), serving = Start("sm/TwoSR", "state"), others = Start("sm/OneSR", "other state"), tool = Start("tool", "state");
        IReadOnlyList<string> killed = await OrphanedCalls.EndAsync(
            "state", [folder.File("sm")], new HashSet<int> { serving }, TimeSpan.FromMilliseconds(100), TimeProvider.System, CancellationToken.None);
        Assert.Contains($"process {orphan}", Assert.Single(killed), StringComparison.Ordinal);
        Assert.True(SpinWait.SpinUntil(() => MembersOf(orphan) == 0, TimeSpan.FromSeconds(5)));
        foreach (int id in (int[])[serving, others, tool])
            Assert.Equal(2, MembersOf(id));
    }

    [Fact]
    public async Task Nothing_is_killed_when_the_call_ends_in_time()
    {
        int orphan = Start("sm/OneSR", "state");
        Task<IReadOnlyList<string>> ending = OrphanedCalls.EndAsync(
            "state", [folder.File("sm")], new HashSet<int>(), TimeSpan.FromSeconds(30), TimeProvider.System, CancellationToken.None);
        Assert.False(ending.IsCompleted);
        ProcessTable.KillSession(orphan); // As if it had ended by itself.
        Assert.Empty(await ending);
    }

    private static int MembersOf(int session) =>
        ProcessTable.Ids().Count(id => ProcessTable.SessionOf(id) == session && ProcessTable.IsAlive(id));

    /// <summary>A script with a child, in a session of its own as ChildProcess gives one.</summary>
    private int Start(string name, string state)
    {
        if (!File.Exists(folder.File(name)))
            FakeProgram.Write(folder.File(name), "sleep 1000 & echo ready; wait");
        ProcessStartInfo start = new("/usr/bin/setsid", [folder.File(name)]) { RedirectStandardOutput = true };
        start.Environment[OrphanedCalls.Mark] = state;
        Process process = Process.Start(start)!;
        started.Add(process);
        Assert.Equal("ready", process.StandardOutput.ReadLine());
        return process.Id;
    }
}
