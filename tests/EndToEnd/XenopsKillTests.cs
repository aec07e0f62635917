// kill -9 of the domains' daemon under a served pool.
using Demo;
using Platform;
using StorageAccess.Wire;

namespace EndToEnd;

public class XenopsKillTests
{
    private const int Sigkill = 9;
    private static readonly CancellationToken None = CancellationToken.None;

    [Fact]
    public async Task A_killed_xenopsd_is_started_again_and_a_VM_whose_guest_died_with_it_is_halted_told_and_can_be_started()
    {
        ServedPools pools = new();
        await pools.InitializeAsync();
        try
        {
            ServedPool pool = pools.A;
            string vm = await pool.Api.ByNameAsync("VM", Journey.VmName, None);
            SortedSet<string> running = await SeeAsync(pool);
            Kill(pool, "xenopsd");
            await UntilAsync(async () => await StateOfAsync(pool, vm) == "Halted", "the VM is halted");
            await UntilAsync(async () => !(await SeeAsync(pool)).Any(static s => s.Contains(" datapath vbd/") || s.EndsWith(" tapdisk")), "its datapath is gone");
            RpcStruct message = Assert.Single((await pool.Api.CallAsync("message.get_all_records", None)).AsStruct().Members).Value.AsStruct();
            Assert.Equal("VM_CRASHED", message.Get("name").AsString());
            Assert.Equal(await pool.Api.RefAsync("VM.get_uuid", None, vm), message.Get("obj_uuid").AsString());

            await pool.Api.CallAsync("VM.start", None, vm, false, false);
            Assert.Equal("Running", await StateOfAsync(pool, vm));
            Assert.Equal(running, await SeeAsync(pool));
        }
        finally
        {
            await pools.DisposeAsync();
        }
    }

    private static void Kill(ServedPool pool, string command)
    {
        foreach ((int pid, _) in Leftovers.Processes(pool.Folder).Where(p => p.Command == command).ToArray())
            Assert.True(Posix.TryKill(pid, Sigkill));
    }

    private static Task<string> StateOfAsync(ServedPool pool, string vm) => pool.Api.RefAsync("VM.get_power_state", None, vm);

    /// <summary>Without what a new process or a new socket's name is called.</summary>
    private static async Task<SortedSet<string>> SeeAsync(ServedPool pool)
    {
        SortedSet<string> seen = [];
        foreach (string thing in await Leftovers.SeeAsync(pool.Name, pool.Folder, pool.Api, None))
            seen.Add(string.Join(' ', thing.Split(' ').Select(static word => word.All(char.IsAsciiDigit) ? "N" : word)));
        return seen;
    }

    private static async Task UntilAsync(Func<Task<bool>> condition, string what)
    {
        for (int tries = 0; !await condition(); tries++)
        {
            Assert.True(tries < 200, $"not within 10 s: {what}");
            await Task.Delay(50);
        }
    }
}
