using SmapiV1Adapter;
using StorageAccess;
using StorageAccess.Wire;
using Support;

namespace Conformance.PluginsTests;

/// <summary>
/// The toolstack that a SMAPIv1 driver calls back: XML-RPC on a unix socket over a database of VDI records. What it does not know is an
/// error, so that a driver cannot rely on more than the field has.
/// </summary>
internal sealed class FakeXenApi : ISmDatabase, IAsyncDisposable
{
    private readonly Dictionary<string, VdiInfo> records = [];
    private readonly UnixHttpServer server;
    private readonly SmSr sr;

    public FakeXenApi(string socketPath, string location)
    {
        sr = new SmSr("OpaqueRef:sr", "OpaqueRef:session", true, new Dictionary<string, string> { ["location"] = location });
        server = new UnixHttpServer(socketPath, text => Task.FromResult(Answer(text)));
    }

    public string HostRef => "OpaqueRef:host";

    public string HostAddress => "203.0.113.5";

    public Dictionary<string, long> SrNumbers { get; } = [];

    public ValueTask DisposeAsync() => server.DisposeAsync();

    public string TaskRefOf(string dbg) => "OpaqueRef:task";

    public SmSr Sr(SrId id) => sr;

    public SrInfo SrInfo(SrId id)
    {
        long total = SrNumbers["SR.set_physical_size"];
        return new SrInfo(id.Value, "", "", total, total - SrNumbers["SR.set_physical_utilisation"], false, "Healthy");
    }

    public IReadOnlyList<VdiInfo> Vdis(SrId id)
    {
        lock (records)
            return records.Values.ToList();
    }

    public SmVdi? FindVdi(SrId id, VdiId location)
    {
        lock (records)
            return records.TryGetValue("OpaqueRef:" + location, out VdiInfo? info)
                ? new SmVdi("OpaqueRef:" + location, "persist", false, info) : null;
    }

    public void RecordCopy(SrId id, VdiId copy, VdiInfo source, bool isSnapshot)
    {
        lock (records)
            records["OpaqueRef:" + copy] = records["OpaqueRef:" + copy] with { NameLabel = source.NameLabel };
    }

    public SmSr NoSr() => sr with { Ref = "" };

    public void RenameSr(SrId id, string? label, string? description)
    {
    }

    public void RenameVdi(SrId id, VdiId vdi, string? label, string? description)
    {
        lock (records)
        {
            VdiInfo info = records["OpaqueRef:" + vdi];
            records["OpaqueRef:" + vdi] = info with { NameLabel = label ?? info.NameLabel, NameDescription = description ?? info.NameDescription };
        }
    }

    public void SetContentId(SrId id, VdiId vdi, string contentId)
    {
    }

    public void SetSmConfig(SrId id, VdiId vdi, string key, string? value)
    {
    }

    public void Tag(SrId id, VdiId vdi, string tag, bool isThere)
    {
    }

    public void RecordCaching(SrId id, VdiId vdi, SmCaching? caching)
    {
    }

    public void ContentChanges(SrId id, VdiId vdi)
    {
    }

    public void ContentSettles(SrId id, VdiId vdi)
    {
    }

    public void RecordRevert(SrId id, VdiId vdi, VdiId snapshot)
    {
    }

    public void RecordSnapshotOf(SrId id, VdiId vdi, string snapshotTime, VdiId snapshotOf)
    {
    }

    public void RecordDataDestroyed(SrId id, VdiId vdi)
    {
    }

    private string Answer(string text)
    {
        XmlRpcCall call = XmlRpc.ReadCall(text);
        try
        {
            if (call.Parameters[0].AsString() != sr.SessionRef)
                throw new InvalidOperationException("SESSION_INVALID");
            lock (records)
                return XmlRpc.WriteResponse(RpcValue.Struct(("Status", "Success"),
                    ("Value", Run(call.Method, call.Parameters.Skip(1).ToList()))));
        }
        catch (Exception e) when (e is InvalidOperationException or KeyNotFoundException or ArgumentOutOfRangeException or RpcFormatException)
        {
            return XmlRpc.WriteResponse(
                RpcValue.Struct(("Status", "Failure"), ("ErrorDescription", RpcValue.Strings(["INTERNAL_ERROR", call.Method, e.Message]))));
        }
    }

    private RpcValue Run(string method, List<RpcValue> p)
    {
        switch (method)
        {
            case "VDI.get_all_records_where" when p[0].AsString() == "field \"SR\" = \"OpaqueRef:sr\"":
                return RpcValue.Struct(records.Select(static r => (r.Key, (RpcValue)RpcValue.Struct(
                    ("location", r.Value.Vdi.Value), ("virtual_size", $"{r.Value.VirtualSizeBytes}"),
                    ("physical_utilisation", $"{r.Value.PhysicalUtilisationBytes}")))).ToArray());
            case "VDI.db_introduce" when p.Count == 19:
                VdiInfo made = new()
                {
                    Uuid = p[0].AsString(),
                    NameLabel = p[1].AsString(),
                    NameDescription = p[2].AsString(),
                    Type = p[4].AsString(),
                    Vdi = new VdiId(p[8].AsString()),
                    SmConfig = p[10].AsMap(),
                    VirtualSizeBytes = p[12].AsLong(),
                    PhysicalUtilisationBytes = p[13].AsLong(),
                    IsASnapshot = p[15].AsBool(),
                    SnapshotOf = p[17].AsString(),
                };
                records.Add("OpaqueRef:" + made.Vdi, made);
                return "OpaqueRef:" + made.Vdi;
            case "VDI.db_forget":
                return records.Remove(p[0].AsString()) ? new RpcNil() : throw new InvalidOperationException("HANDLE_INVALID");
            case "VDI.get_location":
                return records[p[0].AsString()].Vdi.Value;
            case "VDI.set_virtual_size":
                records[p[0].AsString()] = records[p[0].AsString()] with { VirtualSizeBytes = p[1].AsLong() };
                return new RpcNil();
            case "VDI.set_physical_utilisation":
                records[p[0].AsString()] = records[p[0].AsString()] with { PhysicalUtilisationBytes = p[1].AsLong() };
                return new RpcNil();
            case "SR.set_virtual_allocation" or "SR.set_physical_size" or "SR.set_physical_utilisation":
                SrNumbers[method] = p[1].AsLong();
                return new RpcNil();
            default:
                throw new InvalidOperationException("MESSAGE_METHOD_UNKNOWN");
        }
    }
}
