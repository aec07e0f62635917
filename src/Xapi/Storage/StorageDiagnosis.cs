// Two questions that an operator has and the field's API has no answer to: what is wrong with an SR's chains, and who has a disk.
using System.Text.Json;
using Platform;
using StorageAccess;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Rpc;

namespace Xapi.Storage;

/// <param name="toolsDirectory">Where sr-gc is, which knows the form of an SR folder.</param>
/// <param name="hostName">What holders on this host are told to be on.</param>
public sealed class StorageDiagnosis(StorageHost storage, PoolDatabase database, string hostRef, string toolsDirectory, string hostName)
{
    private const int ReportLimitBytes = 16 << 20;
    private static readonly TimeSpan DoctorLimit = TimeSpan.FromMinutes(5);

    /// <summary>The device_config keys under which the shipped drivers keep their folder.</summary>
    private static readonly string[] FolderKeys = ["location", "path"];

    private readonly HostReality reality = new(hostName);

    public void AddTo(MessageTable messages)
    {
        messages.Declare("SR.doctor", "(sr:ref SR)", "string", isAsync: true, DoctorAsync);
        messages.Declare(
            "VDI.get_holders", "(vdi:ref VDI)", "map(string->map(string->string))", isAsync: false, (_, a) => Task.FromResult(Holders(a[0].AsString())));
    }

    /// <summary>
    /// What <c>sr-gc doctor --json</c> says of the SR's folder. In a process of its own: an image that is bad enough to take its reader
    /// down takes no pool down.
    /// </summary>
    /// <exception cref="XapiException">SR_OPERATION_NOT_SUPPORTED [sr, why]: this SR is no folder of VHD files.</exception>
    private async Task<RpcValue> DoctorAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        string sr = a[0].AsString();
        string folder = FolderOf(sr) ?? throw new XapiException("SR_OPERATION_NOT_SUPPORTED", sr, "it is no folder of this host");
        ChildResult told;
        try
        {
            told = await ChildProcess.RunAsync(
                Path.Combine(toolsDirectory, "sr-gc"), ["doctor", folder, "--json"], "",
                new Dictionary<string, string?> { ["BLKTAP_CONTROL_DIRECTORY"] = storage.Tap.ControlDirectory },
                DoctorLimit, ReportLimitBytes, context.CancellationToken);
        }
        catch (ChildProcessException e)
        {
            throw new XapiException("INTERNAL_ERROR", e.Message);
        }

        // 1 with a report: it found errors, and that is what was asked for.
        return IsReport(told.StandardOutput)
            ? told.StandardOutput.Trim()
            : throw new XapiException("SR_OPERATION_NOT_SUPPORTED", sr, told.StandardError.Trim());
    }

    private string? FolderOf(string sr)
    {
        if (!database.Exists("SR", sr))
            throw new XapiException("HANDLE_INVALID", "SR", sr);
        foreach (string pbd in database.GetSet("SR", sr, "PBDs").Where(pbd => database.GetRef("PBD", pbd, "host") == hostRef))
        {
            IReadOnlyDictionary<string, string> config = database.GetMap("PBD", pbd, "device_config");
            if (FolderKeys.Select(key => config.GetValueOrDefault(key)).FirstOrDefault(Path.IsPathRooted) is { } folder)
                return folder;
        }

        return null;
    }

    /// <summary>Each datapath of the disk: host, VM, state, process and since when. An empty map: nobody has it.</summary>
    private RpcValue Holders(string vdi)
    {
        SrId sr = new(database.GetString("SR", database.GetRef("VDI", vdi, "SR"), "uuid"));
        VdiId location = new(database.GetString("VDI", vdi, "location"));
        return new RpcStruct([.. storage.Layer.DpStatVdi(sr, location).Datapaths.Select(d => KeyValuePair.Create(d.Datapath.Value, (RpcValue)Holder(d)))]);
    }

    private RpcStruct Holder(DatapathRow row) => RpcValue.Map(new Dictionary<string, string>
    {
        ["host"] = hostName,
        ["host_uuid"] = database.GetString("host", hostRef, "uuid"),
        ["vm"] = row.Vm,
        ["vm_name"] = NameOf(row.Vm),
        ["state"] = row.State.ToString(),
        ["process"] = ServerOf(row) ?? "",
        ["since"] = $"{row.Since:yyyyMMddTHH:mm:ssZ}",
        ["leaked"] = row.IsLeaked ? "true" : "false",
    });

    /// <summary>Null for a disk that is only attached, and for one that is let go of at this moment.</summary>
    private string? ServerOf(DatapathRow row)
    {
        if (row.State.Phase != VdiPhase.Activated)
            return null;
        try
        {
            return reality.ServerOf(storage.Layer.DpAttachInfo(row.Sr, row.Vdi, row.Datapath));
        }
        catch (StorageException)
        {
            return null;
        }
    }

    /// <summary>A datapath may belong to a migration or a tool, and then to no VM.</summary>
    private string NameOf(string vm) =>
        database.All("VM").FirstOrDefault(v => database.GetString("VM", v, "uuid") == vm) is { } found ? database.GetString("VM", found, "name_label") : "";

    private static bool IsReport(string text)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(text);
            return document.RootElement.TryGetProperty("report", out _);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            return false;
        }
    }
}
