// SMAPIv2 -> one SMAPIv1 driver: which command, which arguments, what its answer means (research/storage.md 2.7, 3.2, 3.4). What a VDI or SR looks like
// afterwards comes from the database, which the driver has changed by its call-backs.
using System.Globalization;
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV1Adapter;

public sealed class SmapiV1Backend(SmDriver driver, ISmDatabase database, SmDriverSettings settings) : IStorageBackend
{
    public Task<QueryResult> QueryAsync(string dbg, CancellationToken cancellationToken) => Task.FromResult(driver.Info);

    public async Task<IReadOnlyDictionary<string, string>> SrCreateAsync(
        string dbg, SrId sr, string nameLabel, string nameDescription, IReadOnlyDictionary<string, string> deviceConfig, long physicalSizeBytes,
        CancellationToken cancellationToken)
    {
        await CallForNilAsync(
            OnSr(dbg, "sr_create", sr) with { DeviceConfig = deviceConfig, Arguments = [Decimal(physicalSizeBytes)] }, cancellationToken);
        return deviceConfig;
    }

    public Task SrAttachAsync(string dbg, SrId sr, IReadOnlyDictionary<string, string> deviceConfig, CancellationToken cancellationToken) =>
        CallForNilAsync(OnSr(dbg, "sr_attach", sr) with { DeviceConfig = deviceConfig }, cancellationToken);

    public Task SrDetachAsync(string dbg, SrId sr, CancellationToken cancellationToken) =>
        CallForNilAsync(OnSr(dbg, "sr_detach", sr), cancellationToken);

    public Task SrDestroyAsync(string dbg, SrId sr, CancellationToken cancellationToken) =>
        CallForNilAsync(OnSr(dbg, "sr_delete", sr), cancellationToken);

    public async Task<SrScan> SrScanAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        await CallForNilAsync(OnMaster(OnSr(dbg, "sr_scan", sr)), cancellationToken);
        return new SrScan(database.Vdis(sr), database.SrInfo(sr));
    }

    public async Task<SrInfo> SrStatAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        if (Can("SR_UPDATE"))
            await CallForNilAsync(OnSr(dbg, "sr_update", sr), cancellationToken);
        return database.SrInfo(sr);
    }

    public async Task<VdiInfo> VdiCreateAsync(string dbg, SrId sr, VdiInfo request, CancellationToken cancellationToken)
    {
        SmCall call = OnMaster(OnSr(dbg, "vdi_create", sr)) with
        {
            Arguments =
            [
                Decimal(request.VirtualSizeBytes), request.NameLabel, request.NameDescription, "", Flag(request.IsASnapshot), request.SnapshotTime,
                request.SnapshotOf, Flag(request.ReadOnly),
            ],
            VdiType = request.Type,
            VdiSmConfig = request.SmConfig,
        };
        return Introduced(sr, await CallForVdiAsync(call, cancellationToken));
    }

    public Task VdiDestroyAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        CallForNilAsync(OnMaster(OnVdi(dbg, "vdi_delete", sr, vdi)), cancellationToken);

    public Task<VdiInfo> VdiStatAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) => Task.FromResult(Vdi(sr, vdi).Info);

    public Task<VdiInfo> VdiSnapshotAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken) =>
        CopyAsync(dbg, "vdi_snapshot", sr, source, isSnapshot: true, cancellationToken);

    public Task<VdiInfo> VdiCloneAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken) =>
        CopyAsync(dbg, "vdi_clone", sr, source, isSnapshot: false, cancellationToken);

    public async Task<long> VdiResizeAsync(string dbg, SrId sr, VdiId vdi, long newSizeBytes, CancellationToken cancellationToken)
    {
        SmCall call = OnMaster(OnVdi(dbg, "vdi_resize", sr, vdi)) with { Arguments = [Decimal(newSizeBytes)] };
        return Introduced(sr, await CallForVdiAsync(call, cancellationToken)).VirtualSizeBytes;
    }

    public async Task<Backend> VdiAttachAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken)
    {
        SmCall call = OnVdi(dbg, "vdi_attach", sr, vdi) with { Arguments = [Flag(access == VdiAccess.ReadWrite)] };
        RpcValue answer = await CallAsync(call, cancellationToken);
        return Shaped(call, answer, static value =>
        {
            RpcStruct attach = value.AsStruct();
            string nbd = attach.Get("params_nbd").AsString();
            string? parameters = attach.Find("params")?.AsString();
            Dictionary<string, string> extra = attach.Find("xenstore_data")?.AsMap() ?? [];
            List<Implementation> implementations = [new XenDisk(parameters ?? nbd, extra, "vbd3")];
            if (parameters is not null)
                implementations.Add(new BlockDevicePath(parameters));
            implementations.Add(new NbdImplementation(nbd));
            return new Backend(implementations);
        });
    }

    public Task VdiActivateAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken) =>
        Can("VDI_ACTIVATE")
            ? CallForNilAsync(
                OnVdi(dbg, "vdi_activate", sr, vdi) with { Arguments = [Flag(access == VdiAccess.ReadWrite)] }, cancellationToken)
            : Task.CompletedTask;

    public Task VdiDeactivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken) =>
        Can("VDI_DEACTIVATE") ? LetGoAsync(dbg, "vdi_deactivate", sr, vdi, cancellationToken) : Task.CompletedTask;

    public Task VdiDetachAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken) =>
        LetGoAsync(dbg, "vdi_detach", sr, vdi, cancellationToken);

    /// <summary>A VDI whose record is gone counts as let go.</summary>
    private Task LetGoAsync(string dbg, string command, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        database.FindVdi(sr, vdi) is null ? Task.CompletedTask : CallForNilAsync(OnVdi(dbg, command, sr, vdi), cancellationToken);

    private async Task<VdiInfo> CopyAsync(
        string dbg, string command, SrId sr, VdiInfo source, bool isSnapshot, CancellationToken cancellationToken)
    {
        SmCall call = OnMaster(OnVdi(dbg, command, sr, source.Vdi)) with { DriverParams = source.SmConfig };
        VdiId copy = await CallForVdiAsync(call, cancellationToken);
        Introduced(sr, copy);
        database.RecordCopy(sr, copy, source, isSnapshot);
        if (Can("VDI_UPDATE"))
            await CallForNilAsync(OnVdi(dbg, "vdi_update", sr, copy), cancellationToken);
        return Introduced(sr, copy);
    }

    private bool Can(string capability) => driver.Capabilities.ContainsKey(capability);

    private SmVdi Vdi(SrId sr, VdiId vdi) => database.FindVdi(sr, vdi) ?? throw StorageException.VdiDoesNotExist(vdi);

    private VdiInfo Introduced(SrId sr, VdiId vdi) =>
        database.FindVdi(sr, vdi)?.Info
        ?? throw StorageException.NoAnswer("SR_BACKEND_FAILURE", "", $"the driver answered location {vdi} and did not introduce it", "");

    private SmCall OnSr(string dbg, string command, SrId sr) =>
        new(command) { HostRef = database.HostRef, Sr = database.Sr(sr), SrUuid = sr, TaskRef = database.TaskRefOf(dbg) };

    private SmCall OnVdi(string dbg, string command, SrId sr, VdiId vdi) => OnSr(dbg, command, sr) with { Vdi = Vdi(sr, vdi) };

    private static SmCall OnMaster(SmCall call) =>
        call.Sr!.IsMaster ? call : throw new StorageException("HOST_IS_SLAVE", $"{call.Command} runs on the pool's coordinator only");

    private Task<RpcValue> CallAsync(SmCall call, CancellationToken cancellationToken) =>
        SmProcess.CallAsync(driver.Path, call, settings, cancellationToken);

    private async Task CallForNilAsync(SmCall call, CancellationToken cancellationToken)
    {
        RpcValue answer = await CallAsync(call, cancellationToken);
        if (answer is not RpcNil)
            throw SmProcess.Misshapen(call, answer, "nil was expected");
    }

    /// <summary>The location in a <c>{uuid, location}</c>.</summary>
    private async Task<VdiId> CallForVdiAsync(SmCall call, CancellationToken cancellationToken) =>
        Shaped(call, await CallAsync(call, cancellationToken), static value =>
        {
            RpcStruct vdi = value.AsStruct();
            vdi.Get("uuid").AsString();
            return new VdiId(vdi.Get("location").AsString());
        });

    private static T Shaped<T>(SmCall call, RpcValue answer, Func<RpcValue, T> read)
    {
        try
        {
            return read(answer);
        }
        catch (RpcFormatException e)
        {
            throw SmProcess.Misshapen(call, answer, e.Message);
        }
    }

    private static string Decimal(long value) => value.ToString(CultureInfo.InvariantCulture);

    private static string Flag(bool value) => value ? "true" : "false";
}
