// SR.probe's answer in the two forms of XenAPI (research: storage.md 2.8): a driver's own XML, or a list that clients can read.
using System.Globalization;
using System.Security;
using StorageAccess;
using StorageAccess.Wire;

namespace Xapi.Storage;

internal static class ProbeAnswer
{
    /// <summary>The driver's XML as it is; a list in the field's layout.</summary>
    public static string Xml(ProbeResult result) => result is ProbeList list
        ? $"<SRlist>{string.Concat(list.Found.Where(static f => f.Sr is not null).Select(static f => Xml(f.Sr!)))}</SRlist>"
        : ((RawProbe)result).Xml;

    /// <exception cref="XapiException">SR_OPERATION_NOT_SUPPORTED: the driver answers in XML only.</exception>
    public static RpcArray Records(ProbeResult result, string type) => result is ProbeList list
        ? RpcValue.Array(list.Found.Select(Record))
        : throw new XapiException("SR_OPERATION_NOT_SUPPORTED", $"SR.probe_ext: the driver of type {type} has SR.probe only");

    private static string Xml(SrInfo sr) =>
        $"<SR><size>{sr.TotalSpaceBytes}</size><name_label>{SecurityElement.Escape(sr.NameLabel)}</name_label>" +
        $"<name_description>{SecurityElement.Escape(sr.NameDescription)}</name_description><UUID>{SecurityElement.Escape(sr.Uuid)}</UUID></SR>";

    private static RpcStruct Record(ProbedSr found)
    {
        List<(string, RpcValue)> members =
        [
            ("configuration", RpcValue.Map(found.Configuration)), ("complete", found.Complete), ("extra_info", RpcValue.Map(found.ExtraInfo)),
        ];
        if (found.Sr is { } sr)
            members.Add(("sr", RpcValue.Struct(
                ("uuid", sr.Uuid), ("name_label", sr.NameLabel), ("name_description", sr.NameDescription),
                ("total_space", Decimal(sr.TotalSpaceBytes)), ("free_space", Decimal(sr.FreeSpaceBytes)), ("clustered", sr.Clustered),
                ("health", sr.Health.ToLowerInvariant()))));
        return RpcValue.Struct([.. members]);
    }

    private static string Decimal(long value) => value.ToString(CultureInfo.InvariantCulture);
}
