// kill -9 of the domains' daemon under a served pool.
using System.Text.Json.Nodes;
using Demo;
using Platform;
using StorageAccess.Wire;

namespace EndToEnd;

[Collection(SharedPair.Name)]
public class XenopsKillTests
{
    private const int Sigkill = 9;
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly ServedPools pools;

    public XenopsKillTests(ServedPools pools) => this.pools = pools;

    [Fact]
    public async Task A_killed_xenopsd_is_started_again_and_adopts_its_guest_and_a_VM_whose_guest_died_too_is_halted_told_and_can_be_started()
    {
        await pools.BringHomeAsync();
        ServedPool pool = pools.A;
        string vm = await pool.Api.ByNameAsync("VM", Journey.VmName, None);
        string uuid = await pool.Api.RefAsync("VM.get_uuid", None, vm);
        SortedSet<string> running = await SeeAsync(pool);
        Kill(pool, static isGuest => !isGuest);
        await UntilAsync(async () => await WritesAsync(pool, uuid) > 0, "xenopsd is back");
        long writes = await WritesAsync(pool, uuid);
        await UntilAsync(async () => await WritesAsync(pool, uuid) > writes, "the guest writes on");
        Assert.Equal("Running", await StateOfAsync(pool, vm));
        Assert.Equal(running, await SeeAsync(pool));
        Assert.DoesNotContain($"VM_CRASHED {uuid}", await MessagesAsync(pool));

        Kill(pool, static _ => true);
        await UntilAsync(async () => await StateOfAsync(pool, vm) == "Halted", "the VM is halted");
        await UntilAsync(async () => !(await SeeAsync(pool)).Any(static s => s.Contains(" datapath vbd/") || s.EndsWith(" tapdisk")), "its datapath is gone");
        Assert.Single(await MessagesAsync(pool), $"VM_CRASHED {uuid}");

        await pool.Api.CallAsync("VM.start", None, vm, false, false);
        Assert.Equal("Running", await StateOfAsync(pool, vm));
        Assert.Equal(running, await SeeAsync(pool));
    }

    [Fact]
    public async Task An_adopted_guest_moves_to_the_other_pool()
    {
        await pools.BringHomeAsync();
        string vm = await pools.A.Api.ByNameAsync("VM", Journey.VmName, None);
        string uuid = await pools.A.Api.RefAsync("VM.get_uuid", None, vm);
        Kill(pools.A, static isGuest => !isGuest);
        await UntilAsync(async () => await WritesAsync(pools.A, uuid) > 0, "xenopsd is back");
        RpcValue token = await pools.B.Api.CallAsync(
            "VM.migrate_receive", None, await pools.B.Api.ByNameAsync("host", Journey.HostName, None),
            await pools.B.Api.ByNameAsync("SR", Journey.StorageName, None), RpcValue.Struct());
        await pools.A.Api.CallAsync("VM.migrate", None, vm, token, true, RpcValue.Struct());
        Assert.Equal("Running", await StateOfAsync(pools.B, await pools.B.Api.ByNameAsync("VM", Journey.VmName, None)));
        long writes = await WritesAsync(pools.B, uuid);
        await UntilAsync(async () => await WritesAsync(pools.B, uuid) > writes, "the guest writes on");
        Assert.DoesNotContain(Leftovers.Processes(pools.A.Folder), static p => p.Command.StartsWith("guest ", StringComparison.Ordinal));
    }

    private static async Task<string[]> MessagesAsync(ServedPool pool) =>
    [
        .. (await pool.Api.CallAsync("message.get_all_records", None)).AsStruct().Members.Select(static m => m.Value.AsStruct())
            .Select(static m => $"{m.Get("name").AsString()} {m.Get("obj_uuid").AsString()}"),
    ];

    private static void Kill(ServedPool pool, Func<bool, bool> isMeant)
    {
        foreach ((int pid, string command) in Leftovers.Processes(pool.Folder).ToArray())
        {
            bool isGuest = command.StartsWith("guest ", StringComparison.Ordinal);
            if ((isGuest || command == "xenopsd") && isMeant(isGuest))
                Assert.True(Posix.TryKill(pid, Sigkill));
        }
    }

    /// <returns>-1 while xenopsd does not answer.</returns>
    private static async Task<long> WritesAsync(ServedPool pool, string uuid)
    {
        using JsonRpcClient xenops = new(Path.Combine(pool.Folder, "run", "xenopsd"), TimeSpan.FromSeconds(10));
        try
        {
            return (long)(await xenops.CallAsync("VM.stat", new JsonObject { ["dbg"] = "test", ["id"] = uuid }, None))!["guest"]!["writes_acknowledged"]!;
        }
        catch (IOException)
        {
            return -1;
        }
    }

    private static Task<string> StateOfAsync(ServedPool pool, string vm) => pool.Api.RefAsync("VM.get_power_state", None, vm);

    /// <summary>Without what a new process or a new socket's name is called.</summary>
    private static async Task<SortedSet<string>> SeeAsync(ServedPool pool)
    {
        SortedSet<string> seen = [];
        foreach (string thing in await Leftovers.SeeAsync(pool.Name, pool.Folder, pool.Api, None))
            seen.Add(thing.Contains(" process ") || thing.Contains(" socket ") ? string.Concat(thing.Where(static c => !char.IsAsciiDigit(c))) : thing);
        return seen;
    }

    private static async Task UntilAsync(Func<Task<bool>> condition, string what)
    {
        for (int tries = 0; !await condition(); tries++)
        {
            Assert.True(tries < 1200, $"not within 60 s: {what}");
            await Task.Delay(50);
        }
    }
}
