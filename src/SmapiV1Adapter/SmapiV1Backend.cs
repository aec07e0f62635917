// SMAPIv2 -> one SMAPIv1 driver: which command, which arguments, what its answer means (research/storage.md 2.7, 3.2, 3.4). What a VDI or
// SR looks like afterwards comes from the database, which the driver has changed by its call-backs.
using System.Globalization;
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV1Adapter;

public sealed partial class SmapiV1Backend(SmDriver driver, ISmDatabase database, SmDriverSettings settings) : IStorageBackend
{
    public SmDriver Driver => driver;

    public Task<QueryResult> QueryAsync(string dbg, CancellationToken cancellationToken) => Task.FromResult(driver.Info);

    public async Task<IReadOnlyDictionary<string, string>> SrCreateAsync(
        string dbg, SrId sr, string nameLabel, string nameDescription, IReadOnlyDictionary<string, string> deviceConfig,
        long physicalSizeBytes,
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
        await CallForNilAsync(OnSr(dbg, "sr_scan", sr), cancellationToken);
        return new SrScan(database.Vdis(sr), database.SrInfo(sr));
    }

    public async Task<SrInfo> SrStatAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        await CallIfClaimedAsync(OnSr(dbg, "sr_update", sr), cancellationToken);
        return database.SrInfo(sr);
    }

    public Task<ProbeResult> SrProbeAsync(
        string dbg, IReadOnlyDictionary<string, string> deviceConfig, IReadOnlyDictionary<string, string> smConfig,
        CancellationToken cancellationToken)
    {
        SmCall call = new("sr_probe")
        {
            HostRef = database.HostRef,
            Sr = database.NoSr(),
            DeviceConfig = deviceConfig,
            SrSmConfig = smConfig,
            TaskRef = database.TaskRefOf(dbg),
        };
        return CallAsync<ProbeResult>(call, static value => new RawProbe(SmAnswers.Text(value)), cancellationToken);
    }

    /// <summary>What the SR holds by its own account; no call of SMAPIv2 asks for it.</summary>
    public Task<string> SrContentTypeAsync(string dbg, SrId sr, CancellationToken cancellationToken) =>
        CallAsync(OnSr(dbg, "sr_content_type", sr), SmAnswers.Text, cancellationToken);

    public async Task SrSetNameLabelAsync(string dbg, SrId sr, string nameLabel, CancellationToken cancellationToken)
    {
        database.RenameSr(sr, nameLabel, description: null);
        await CallIfClaimedAsync(OnSr(dbg, "sr_update", sr), cancellationToken);
    }

    public async Task SrSetNameDescriptionAsync(string dbg, SrId sr, string nameDescription, CancellationToken cancellationToken)
    {
        database.RenameSr(sr, label: null, nameDescription);
        await CallIfClaimedAsync(OnSr(dbg, "sr_update", sr), cancellationToken);
    }

    public async Task<Backend> VdiAttachAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken)
    {
        SmCall call = OnVdi(dbg, "vdi_attach", sr, vdi) with { Arguments = [Flag(access == VdiAccess.ReadWrite)] };
        (Backend backend, SmCaching caching) = await CallAsync(
            call, static value => (SmAnswers.Backend(value), SmAnswers.Caching(value)), cancellationToken);
        database.RecordCaching(sr, vdi, caching);
        return backend;
    }

    /// <summary>A driver without VDI_ACTIVATE is ready when it is attached.</summary>
    public async Task VdiActivateAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken)
    {
        SmCall call = OnVdi(dbg, "vdi_activate", sr, vdi) with { Arguments = [Flag(access == VdiAccess.ReadWrite)] };
        if (access == VdiAccess.ReadWrite)
            database.ContentChanges(sr, vdi);
        await CallIfClaimedAsync(call, cancellationToken);
    }

    public async Task VdiDeactivateAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken)
    {
        if (database.FindVdi(sr, vdi) is null)
            return; // A VDI whose record is gone counts as let go.
        await CallIfClaimedAsync(OnVdi(dbg, "vdi_deactivate", sr, vdi), cancellationToken);
        database.ContentSettles(sr, vdi);
    }

    public async Task VdiDetachAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken)
    {
        if (database.FindVdi(sr, vdi) is null)
            return;
        await CallForNilAsync(OnVdi(dbg, "vdi_detach", sr, vdi), cancellationToken);
        database.RecordCaching(sr, vdi, caching: null);
    }

    /// <summary>A VM boots from it: a VDI that forgets (on_boot reset) starts afresh, one that keeps needs nothing.</summary>
    public Task VdiEpochBeginAsync(string dbg, SrId sr, VdiId vdi, string vm, bool persistent, CancellationToken cancellationToken) =>
        EpochAsync("vdi_epoch_begin", dbg, sr, vdi, isOptional: persistent, cancellationToken);

    public Task VdiEpochEndAsync(string dbg, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken) =>
        EpochAsync("vdi_epoch_end", dbg, sr, vdi, isOptional: true, cancellationToken);

    private Task EpochAsync(string command, string dbg, SrId sr, VdiId vdi, bool isOptional, CancellationToken cancellationToken)
    {
        SmCall call = OnVdi(dbg, command, sr, vdi);
        return isOptional ? CallIfClaimedAsync(call, cancellationToken) : CallForNilAsync(call, cancellationToken);
    }

    private SmVdi Vdi(SrId sr, VdiId vdi) => database.FindVdi(sr, vdi) ?? throw StorageException.VdiDoesNotExist(vdi);

    private SmCall OnSr(string dbg, string command, SrId sr) =>
        new(command) { HostRef = database.HostRef, Sr = database.Sr(sr), SrUuid = sr, TaskRef = database.TaskRefOf(dbg) };

    private SmCall OnVdi(string dbg, string command, SrId sr, VdiId vdi) => OnSr(dbg, command, sr) with { Vdi = Vdi(sr, vdi) };

    private Task CallIfClaimedAsync(SmCall call, CancellationToken cancellationToken) =>
        SmCommands.IsClaimed(driver, call.Command) ? CallForNilAsync(call, cancellationToken) : Task.CompletedTask;

    private async Task CallForNilAsync(SmCall call, CancellationToken cancellationToken) =>
        SmAnswers.CheckNil(call, await AnswerAsync(call, cancellationToken));

    private async Task<T> CallAsync<T>(SmCall call, Func<RpcValue, T> read, CancellationToken cancellationToken) =>
        SmAnswers.Read(call, await AnswerAsync(call, cancellationToken), read);

    private Task<RpcValue> AnswerAsync(SmCall call, CancellationToken cancellationToken)
    {
        SmCommands.Check(driver, call);
        return SmProcess.CallAsync(driver.Path, call, settings, cancellationToken);
    }

    private static string Decimal(long value) => value.ToString(CultureInfo.InvariantCulture);

    private static string Flag(bool value) => value ? "true" : "false";
}
