// The other end of StorageServer: SMAPIv2 over a daemon's unix socket, errors back as StorageException (research/storage.md 1.2, 1.5).
using System.Text.Json.Nodes;
using StorageAccess.Wire;
using static StorageAccess.StorageWire;

namespace StorageAccess;

/// <summary>
/// Calls the storage access layer of another process. Every call throws <see cref="StorageException"/> when the layer refuses, and
/// <see cref="IOException"/> when there is no answer (what was asked may have happened: ask again, every datapath call is idempotent).
/// </summary>
public sealed class StorageClient(JsonRpcClient rpc) : IDatapaths
{
    public async Task<QueryResult> QueryAsync(string dbg, CancellationToken cancellationToken) =>
        ReadQuery(await CallAsync("Query.query", new() { ["dbg"] = dbg }, cancellationToken));

    public async Task<IReadOnlyList<SrId>> SrListAsync(string dbg, CancellationToken cancellationToken) =>
        Items(await CallAsync("SR.list", new() { ["dbg"] = dbg }, cancellationToken)).Select(static s => new SrId(TextOf(s))).ToList();

    /// <returns>The device_config to keep, possibly amended.</returns>
    public async Task<IReadOnlyDictionary<string, string>> SrCreateAsync(
        string dbg, SrId sr, string nameLabel, string nameDescription, IReadOnlyDictionary<string, string> deviceConfig, long physicalSizeBytes,
        CancellationToken cancellationToken)
    {
        JsonObject parameters = OfSr(dbg, sr);
        parameters["name_label"] = nameLabel;
        parameters["name_description"] = nameDescription;
        parameters["device_config"] = Write(deviceConfig);
        parameters["physical_size"] = physicalSizeBytes;
        return Map(await CallAsync("SR.create", parameters, cancellationToken));
    }

    public Task SrAttachAsync(string dbg, SrId sr, IReadOnlyDictionary<string, string> deviceConfig, CancellationToken cancellationToken)
    {
        JsonObject parameters = OfSr(dbg, sr);
        parameters["device_config"] = Write(deviceConfig);
        return CallAsync("SR.attach", parameters, cancellationToken);
    }

    public Task SrDetachAsync(string dbg, SrId sr, CancellationToken cancellationToken) => CallAsync("SR.detach", OfSr(dbg, sr), cancellationToken);

    public Task SrResetAsync(string dbg, SrId sr, CancellationToken cancellationToken) => CallAsync("SR.reset", OfSr(dbg, sr), cancellationToken);

    public Task SrDestroyAsync(string dbg, SrId sr, CancellationToken cancellationToken) => CallAsync("SR.destroy", OfSr(dbg, sr), cancellationToken);

    public async Task<SrScan> SrScanAsync(string dbg, SrId sr, CancellationToken cancellationToken)
    {
        JsonArray pair = Items(await CallAsync("SR.scan2", OfSr(dbg, sr), cancellationToken));
        if (pair.Count != 2)
            throw new RpcFormatException("SR.scan2 must answer a pair");
        return new SrScan(Items(pair[0]).Select(ReadVdiInfo).ToList(), ReadSrInfo(pair[1]));
    }

    public async Task<SrInfo> SrStatAsync(string dbg, SrId sr, CancellationToken cancellationToken) =>
        ReadSrInfo(await CallAsync("SR.stat", OfSr(dbg, sr), cancellationToken));

    public Task<VdiInfo> VdiCreateAsync(string dbg, SrId sr, VdiInfo request, CancellationToken cancellationToken) =>
        CallForVdiAsync("VDI.create", dbg, sr, request, cancellationToken);

    public Task VdiDestroyAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        CallAsync("VDI.destroy", OfVdi(dbg, sr, vdi), cancellationToken);

    public async Task<VdiInfo> VdiStatAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        ReadVdiInfo(await CallAsync("VDI.stat", OfVdi(dbg, sr, vdi), cancellationToken));

    public Task<VdiInfo> VdiSnapshotAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken) =>
        CallForVdiAsync("VDI.snapshot", dbg, sr, source, cancellationToken);

    public Task<VdiInfo> VdiCloneAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken) =>
        CallForVdiAsync("VDI.clone", dbg, sr, source, cancellationToken);

    /// <returns>The new virtual size.</returns>
    public async Task<long> VdiResizeAsync(string dbg, SrId sr, VdiId vdi, long newSizeBytes, CancellationToken cancellationToken)
    {
        JsonObject parameters = OfVdi(dbg, sr, vdi);
        parameters["new_size"] = newSizeBytes;
        return Number(new() { ["size"] = await CallAsync("VDI.resize", parameters, cancellationToken) }, "size");
    }

    public async Task<Backend> AttachAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken)
    {
        JsonObject parameters = OfDatapath(dbg, datapath, sr, vdi, vm);
        parameters["read_write"] = access == VdiAccess.ReadWrite;
        return ReadBackend(await CallAsync("VDI.attach3", parameters, cancellationToken));
    }

    public Task ActivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken) =>
        CallAsync("VDI.activate3", OfDatapath(dbg, datapath, sr, vdi, vm), cancellationToken);

    public Task DeactivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken) =>
        CallAsync("VDI.deactivate", OfDatapath(dbg, datapath, sr, vdi, vm), cancellationToken);

    public Task DetachAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken) =>
        CallAsync("VDI.detach", OfDatapath(dbg, datapath, sr, vdi, vm), cancellationToken);

    public Task DestroyAsync(string dbg, DatapathId datapath, bool allowLeak, CancellationToken cancellationToken) =>
        CallAsync("DP.destroy", new() { ["dbg"] = dbg, ["dp"] = datapath.Value, ["allow_leak"] = allowLeak }, cancellationToken);

    public async Task<Backend> DpAttachInfoAsync(
        string dbg, SrId sr, VdiId vdi, DatapathId datapath, string vm, CancellationToken cancellationToken) =>
        ReadBackend(await CallAsync("DP.attach_info", OfDatapath(dbg, datapath, sr, vdi, vm), cancellationToken));

    /// <summary>The superstate of a VDI and the state of each of its datapaths.</summary>
    public async Task<(VdiState Superstate, IReadOnlyDictionary<DatapathId, VdiState> Datapaths)> DpStatVdiAsync(
        string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        JsonObject parameters = OfVdi(dbg, sr, vdi);
        parameters["unit"] = null;
        JsonObject answer = await CallAsync("DP.stat_vdi", parameters, cancellationToken) as JsonObject
            ?? throw new RpcFormatException("DP.stat_vdi must answer a dict");
        JsonObject dps = Get(answer, "dps") as JsonObject ?? throw new RpcFormatException("dps must be a dict");
        return (ReadState(Get(answer, "superstate")), dps.ToDictionary(static p => new DatapathId(p.Key), static p => ReadState(p.Value)));
    }

    public async Task<string> DpDiagnosticsAsync(CancellationToken cancellationToken) =>
        TextOf(await CallAsync("DP.diagnostics", new() { ["unit"] = null }, cancellationToken));

    private async Task<VdiInfo> CallForVdiAsync(string method, string dbg, SrId sr, VdiInfo vdi, CancellationToken cancellationToken)
    {
        JsonObject parameters = OfSr(dbg, sr);
        parameters["vdi_info"] = Write(vdi);
        return ReadVdiInfo(await CallAsync(method, parameters, cancellationToken));
    }

    private async Task<JsonNode?> CallAsync(string method, JsonObject parameters, CancellationToken cancellationToken)
    {
        try
        {
            return await rpc.CallAsync(method, parameters, cancellationToken);
        }
        catch (JsonRpcException e)
        {
            throw ReadError(e);
        }
    }

    private static JsonObject OfSr(string dbg, SrId sr) => new() { ["dbg"] = dbg, ["sr"] = sr.Value };

    private static JsonObject OfVdi(string dbg, SrId sr, VdiId vdi) => new() { ["dbg"] = dbg, ["sr"] = sr.Value, ["vdi"] = vdi.Value };

    private static JsonObject OfDatapath(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm) =>
        new() { ["dbg"] = dbg, ["dp"] = datapath.Value, ["sr"] = sr.Value, ["vdi"] = vdi.Value, ["vm"] = vm };
}
