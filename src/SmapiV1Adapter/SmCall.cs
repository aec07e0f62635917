// The one argument of a SMAPIv1 driver: an XML-RPC methodCall with one struct, every scalar an untagged string, members in the field's order
// (research/storage.md 3.1, the table's rows from top to bottom).
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV1Adapter;

internal sealed record SmCall(string Command)
{
    public required string HostRef { get; init; }

    public IReadOnlyList<string> Arguments { get; init; } = [];

    /// <summary>Null only for sr_get_driver_info, which is about no SR.</summary>
    public SmSr? Sr { get; init; }

    public SrId SrUuid { get; init; }

    public IReadOnlyDictionary<string, string>? DeviceConfig { get; init; }

    public SmVdi? Vdi { get; init; }

    public string? VdiType { get; init; }

    public IReadOnlyDictionary<string, string>? DriverParams { get; init; }

    public IReadOnlyDictionary<string, string>? VdiSmConfig { get; init; }

    public string? TaskRef { get; init; }

    public string ToXml()
    {
        List<KeyValuePair<string, RpcValue>> members = [];
        AddText("host_ref", HostRef);
        AddText("command", Command);
        Add("args", RpcValue.Strings(Arguments));
        Add("device_config", RpcValue.Map(Sr is null ? [] : Config()));
        AddText("session_ref", Sr?.SessionRef);
        AddText("sr_ref", Sr?.Ref);
        AddText("vdi_type", VdiType);
        AddText("sr_uuid", Sr is null ? null : SrUuid.Value);
        AddText("vdi_ref", Vdi?.Ref);
        AddText("vdi_location", Vdi?.Info.Vdi.Value);
        AddText("vdi_uuid", Vdi?.Info.Uuid);
        Add("driver_params", DriverParams is null ? null : RpcValue.Map(DriverParams));
        Add("vdi_sm_config", VdiSmConfig is null ? null : RpcValue.Map(VdiSmConfig));
        AddText("subtask_of", TaskRef);
        AddText("vdi_on_boot", Vdi?.OnBoot);
        AddText("vdi_allow_caching", Vdi is null ? null : Vdi.AllowCaching ? "true" : "false");
        AddText("local_cache_sr", Sr?.LocalCacheSr);
        return XmlRpc.WriteCall(Command, new RpcStruct(members));

        void AddText(string name, string? text) => Add(name, text is null ? null : new RpcString(text));

        void Add(string name, RpcValue? value)
        {
            if (value is not null)
                members.Add(KeyValuePair.Create(name, value));
        }
    }

    private IEnumerable<KeyValuePair<string, string>> Config() =>
        new[] { KeyValuePair.Create("SRmaster", Sr!.IsMaster ? "true" : "false") }
            .Concat((DeviceConfig ?? Sr.DeviceConfig).Where(static p => p.Key != "SRmaster"));
}
