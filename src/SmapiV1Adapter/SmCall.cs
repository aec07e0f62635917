// The one argument of a SMAPIv1 driver: an XML-RPC methodCall with one struct, every scalar an untagged string, members in the field's
// order (research/storage.md 3.1, the table's rows from top to bottom).
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV1Adapter;

internal sealed record SmCall(string Command)
{
    public required string HostRef { get; init; }

    public IReadOnlyList<string> Arguments { get; init; } = [];

    /// <summary>Null only for sr_get_driver_info; a probe's has no Ref.</summary>
    public SmSr? Sr { get; init; }

    public SrId SrUuid { get; init; }

    /// <summary>In place of the SR's own.</summary>
    public IReadOnlyDictionary<string, string>? DeviceConfig { get; init; }

    /// <summary>sr_probe only.</summary>
    public IReadOnlyDictionary<string, string>? SrSmConfig { get; init; }

    public SmVdi? Vdi { get; init; }

    public string? VdiType { get; init; }

    /// <summary>The uuid that the caller fixes for a VDI to be created.</summary>
    public string? FixedUuid { get; init; }

    /// <summary>The location of a VDI to be introduced.</summary>
    public VdiId? NewLocation { get; init; }

    public string? NewUuid { get; init; }

    public IReadOnlyDictionary<string, string>? DriverParams { get; init; }

    public IReadOnlyDictionary<string, string>? VdiSmConfig { get; init; }

    public string? TaskRef { get; init; }

    public string ToXml()
    {
        List<KeyValuePair<string, RpcValue>> members = [];
        bool hasSr = Sr is { Ref.Length: > 0 };
        AddText("host_ref", HostRef);
        AddText("command", Command);
        Add("args", RpcValue.Strings(Arguments));
        Add("device_config", RpcValue.Map(Sr is null ? [] : Config(Sr)));
        AddText("session_ref", Sr?.SessionRef);
        AddMap("sr_sm_config", SrSmConfig);
        AddText("sr_ref", hasSr ? Sr!.Ref : null);
        AddText("vdi_type", VdiType);
        AddText("sr_uuid", hasSr ? SrUuid.Value : null);
        AddText("vdi_ref", Vdi?.Ref);
        AddText("vdi_location", Vdi?.Info.Vdi.Value ?? NewLocation?.Value);
        AddText("vdi_uuid", Vdi?.Info.Uuid ?? FixedUuid);
        AddMap("driver_params", DriverParams);
        AddMap("vdi_sm_config", VdiSmConfig);
        AddText("new_uuid", NewUuid);
        AddText("subtask_of", TaskRef);
        AddText("vdi_on_boot", Vdi?.OnBoot);
        AddText("vdi_allow_caching", Vdi is null ? null : Vdi.AllowCaching ? "true" : "false");
        AddText("local_cache_sr", Sr?.LocalCacheSr);
        return XmlRpc.WriteCall(Command, new RpcStruct(members));

        void AddText(string name, string? text) => Add(name, text is null ? null : new RpcString(text));

        void AddMap(string name, IReadOnlyDictionary<string, string>? map) => Add(name, map is null ? null : RpcValue.Map(map));

        void Add(string name, RpcValue? value)
        {
            if (value is not null)
                members.Add(KeyValuePair.Create(name, value));
        }
    }

    /// <summary>Every map of the call in which an integrator may have put a password.</summary>
    public IEnumerable<KeyValuePair<string, string>> Settings() =>
        new[] { DeviceConfig, Sr?.DeviceConfig, SrSmConfig, DriverParams, VdiSmConfig, Vdi?.Info.SmConfig }
            .SelectMany(static map => map ?? new Dictionary<string, string>());

    private IEnumerable<KeyValuePair<string, string>> Config(SmSr sr) =>
        new[] { KeyValuePair.Create("SRmaster", sr.IsMaster ? "true" : "false") }
            .Concat((DeviceConfig ?? sr.DeviceConfig).Where(static p => p.Key != "SRmaster"));
}
