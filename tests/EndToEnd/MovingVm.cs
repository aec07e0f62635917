// The demo's VM on its way between two pools, for tests that disturb it: where it is, what was promised to its guest, what each pool should look like.
using System.Text.RegularExpressions;
using Demo;
using StorageAccess.Wire;

namespace EndToEnd;

internal sealed partial class MovingVm
{
    private static readonly CancellationToken None = CancellationToken.None;
    private static readonly TimeSpan SettleLimit = TimeSpan.FromSeconds(90);
    private static readonly TimeSpan Step = TimeSpan.FromMilliseconds(100);

    private readonly ServedPools pools;
    private readonly string uuid;
    private readonly Dictionary<(string Pool, bool HasVm), List<string>> clean = [];

    private MovingVm(ServedPools pools, string uuid)
    {
        this.pools = pools;
        this.uuid = uuid;
        At = pools.A;
    }

    public ServedPool At { get; private set; }

    public ServedPool Other => At.Name == "A" ? pools.B : pools.A;

    public long WritesLookedUp { get; private set; }

    public static async Task<MovingVm> FindAsync(ServedPools pools) =>
        new(pools, await pools.A.Api.RefAsync("VM.get_uuid", None, await pools.A.Api.ByNameAsync("VM", Journey.VmName, None)));

    public async Task LearnCleanStateAsync()
    {
        for (int hop = 0; hop < 2; hop++)
        {
            clean[(At.Name, true)] = await SeeAsync(At);
            await BeginMoveAsync(0);
            Assert.True(await RefOfAsync(Other) is not null, "an undisturbed migration arrives");
            clean[(At.Name, false)] = await SeeAsync(At);
            At = Other;
        }
    }

    /// <summary>Completes when the caller of VM.migrate has his answer, whatever it is; also when his daemon died under him.</summary>
    public async Task BeginMoveAsync(long bandwidthBytesPerSecond)
    {
        try
        {
            string host = (await Other.Api.CallAsync("host.get_all", None)).AsArray()[0].AsString();
            string storage = await Other.Api.ByNameAsync("SR", StorageOf(Other), None);
            RpcValue token = await Other.Api.CallAsync("VM.migrate_receive", None, host, storage, RpcValue.Struct());
            await At.Api.CallAsync(
                "VM.migrate", None, await RefOfAsync(At) ?? throw new XenApiException(["it is not there"]), token, true,
                RpcValue.Struct(("bandwidth_limit", $"{bandwidthBytesPerSecond}")));
        }
        catch (Exception e) when (e is XenApiException or HttpRequestException or ObjectDisposedException or OperationCanceledException)
        {
            // Refused, undone, or cut off: which, is seen from what is there.
        }
    }

    public async Task<string> BeginMoveTaskAsync(long bandwidthBytesPerSecond)
    {
        string host = (await Other.Api.CallAsync("host.get_all", None)).AsArray()[0].AsString();
        string storage = await Other.Api.ByNameAsync("SR", StorageOf(Other), None);
        RpcValue token = await Other.Api.CallAsync("VM.migrate_receive", None, host, storage, RpcValue.Struct());
        return await At.Api.RefAsync(
            "Async.VM.migrate", None, (await RefOfAsync(At))!, token, true, RpcValue.Struct(("bandwidth_limit", $"{bandwidthBytesPerSecond}")));
    }

    public async Task<RpcStruct> AwaitTaskAsync(string task)
    {
        while (true)
        {
            RpcStruct record = (await At.Api.CallAsync("task.get_record", None, task)).AsStruct();
            if (record.Get("status").AsString() is not ("pending" or "cancelling"))
                return record;
            await Task.Delay(Step);
        }
    }

    /// <summary>A second disk, that the guest does not write to; the VM is stopped for it.</summary>
    public async Task AddDiskAsync(string location)
    {
        string vm = (await RefOfAsync(At))!;
        await At.Api.CallAsync("VM.hard_shutdown", None, vm);
        foreach (RpcValue vdi in (await At.Api.CallAsync("SR.get_VDIs", None, await At.Api.ByNameAsync("SR", StorageOf(At), None))).AsArray())
        {
            if (await At.Api.RefAsync("VDI.get_location", None, vdi.AsString()) == location)
                await At.Api.CallAsync("VBD.create", None, Journey.VbdRecord(vm, vdi.AsString(), "1"));
        }

        await At.Api.CallAsync("VM.start", None, vm, false, false);
    }

    /// <summary>Waits until exactly one pool has the VM and neither has anything that a migration made.</summary>
    /// <returns>What became of it.</returns>
    public async Task<string> SettleAsync(string situation)
    {
        string before = At.Name;
        DateTime end = DateTime.UtcNow + SettleLimit;
        List<string> wrong;
        while (true)
        {
            wrong = await WhatIsWrongAsync();
            if (wrong.Count == 0)
                break;
            Assert.True(DateTime.UtcNow < end, $"{situation}: after {SettleLimit.TotalSeconds} s: {string.Join("; ", wrong)}");
            await Task.Delay(Step);
        }

        string power = await At.Api.RefAsync("VM.get_power_state", None, (await RefOfAsync(At))!);
        return $"{(before == At.Name ? "stayed" : "moved")}{(power == "Running" ? "" : $", then {power.ToLowerInvariant()}")}";
    }

    /// <summary>Every acknowledged write is in the image; by code that shares nothing with the data path.</summary>
    public async Task VerifyWritesAsync(string situation)
    {
        string vm = (await RefOfAsync(At))!;
        bool isRunning = await At.Api.RefAsync("VM.get_power_state", None, vm) == "Running";
        if (isRunning)
            await At.Api.CallAsync("VM.pause", None, vm);
        Oracle oracle = Oracle.Read([.. OracleLogs]);
        string image = Assert.Single(Directory.GetFiles(Path.Combine(At.Folder, "sr"), "*.vhd", SearchOption.AllDirectories));
        (int looked, List<string> lost) = await Verification.LostWritesAsync(image, oracle, None);
        WritesLookedUp += looked;
        Assert.True(lost.Count == 0, $"{situation}: {string.Join("; ", lost)}");
        if (isRunning)
            await At.Api.CallAsync("VM.unpause", None, vm);
    }

    /// <summary>A guest that died with its host's processes starts again, here and nowhere else; one whose disk died under it is stopped first.</summary>
    public async Task RunAgainAsync(string situation)
    {
        string vm = (await RefOfAsync(At))!;
        string power = await At.Api.RefAsync("VM.get_power_state", None, vm);
        if (power == "Running" && await WritesAsync())
            return;
        if (power != "Halted")
            await At.Api.CallAsync("VM.hard_shutdown", None, vm);
        foreach (string log in OracleLogs)
            File.Delete(log); // A new boot counts from 1 again; what was promised before has just been looked up.
        await At.Api.CallAsync("VM.start", None, vm, false, false);
        Assert.True(await WritesAsync(), $"{situation}: the VM was started again and does not write");
    }

    private IEnumerable<string> OracleLogs =>
        new[] { pools.A, pools.B }.Select(pool => Path.Combine(pool.Folder, "state", "xenopsd", "oracle", uuid + ".log"));

    private async Task<bool> WritesAsync()
    {
        long LengthNow() => OracleLogs.Where(File.Exists).Sum(static log => new FileInfo(log).Length);
        long before = LengthNow();
        for (int tries = 0; tries < 50; tries++)
        {
            await Task.Delay(Step);
            if (LengthNow() > before)
                return true;
        }

        return false;
    }

    private async Task<List<string>> WhatIsWrongAsync()
    {
        try
        {
            bool isAtA = await RefOfAsync(pools.A) is not null, isAtB = await RefOfAsync(pools.B) is not null;
            if (isAtA == isAtB)
                return [isAtA ? "both pools have the VM" : "no pool has the VM"];
            At = isAtA ? pools.A : pools.B;
            List<string> wrong = [];
            foreach (ServedPool pool in (ServedPool[])[pools.A, pools.B])
            {
                bool hasVm = pool.Name == At.Name;
                List<string> seen = await SeeAsync(pool);
                List<string> expected = clean[(pool.Name, hasVm)];
                bool isHalted = hasVm && await pool.Api.RefAsync("VM.get_power_state", None, (await RefOfAsync(pool))!) == "Halted";
                wrong.AddRange(Surplus(seen, expected).Select(thing => $"too much: {thing}"));
                if (!isHalted)
                    wrong.AddRange(Surplus(expected, seen).Select(thing => $"missing: {thing}"));
            }

            return wrong;
        }
        catch (Exception e) when (e is XenApiException or IOException or HttpRequestException or OperationCanceledException)
        {
            return [e.Message];
        }
    }

    private static List<string> Surplus(List<string> all, List<string> known)
    {
        List<string> rest = [.. all];
        foreach (string thing in known)
            rest.Remove(thing);
        return rest;
    }

    private async Task<string?> RefOfAsync(ServedPool pool)
    {
        foreach ((string vm, RpcValue record) in (await pool.Api.CallAsync("VM.get_all_records", None)).AsStruct().Members)
        {
            // A row that is being imported has no owner here yet: it is the migration's, not the pool's.
            if (record.AsStruct().Get("uuid").AsString() == uuid && !record.AsStruct().Get("other_config").AsMap().ContainsKey("import_migration"))
                return vm;
        }

        return null;
    }

    /// <summary>Names of things change from hop to hop; their kinds and numbers do not.</summary>
    private static async Task<List<string>> SeeAsync(ServedPool pool) =>
    [
        .. (await Leftovers.SeeAsync(pool.Name, pool.Folder, pool.Api, None)).Select(static thing => Numbers().Replace(Uuids().Replace(thing, "U"), "N")).Order(StringComparer.Ordinal),
    ];

    private static string StorageOf(ServedPool pool) => pool.Name == "A" ? "pool A's storage" : Journey.StorageName;

    [GeneratedRegex("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")]
    private static partial Regex Uuids();

    [GeneratedRegex("[0-9]+")]
    private static partial Regex Numbers();
}
