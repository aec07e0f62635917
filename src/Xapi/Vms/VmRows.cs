// A VM's rows: as xenopsd wants them, as another pool wants them, and back (research: xapi.md 7.6, cut down to what moves here).
using System.Globalization;
using System.Text.Json.Nodes;
using StorageAccess.Wire;
using Xapi.Database;
using Xenops;

namespace Xapi.Vms;

/// <summary>One of a VM's disks: its VBD, the VDI behind it, and the guest's name for it.</summary>
public sealed record VmDisk(string Vbd, string Vdi, string Device, bool IsReadOnly);

public static class VmRows
{
    /// <summary>The fields that mean the same in another pool. References, metrics and what the server computes stay behind.</summary>
    private static readonly string[] MovingFields =
    [
        "uuid", "name_label", "name_description", "user_version", "is_a_template", "memory_static_max", "memory_dynamic_max", "memory_dynamic_min",
        "memory_static_min", "VCPUs_params", "VCPUs_max", "VCPUs_at_startup", "actions_after_shutdown", "actions_after_reboot", "actions_after_crash",
        "PV_bootloader", "PV_kernel", "PV_ramdisk", "PV_args", "PV_bootloader_args", "PV_legacy_args", "HVM_boot_policy", "HVM_boot_params", "platform",
        "PCI_bus", "other_config", "recommendations", "xenstore_data", "tags", "blocked_operations", "start_delay", "shutdown_delay", "order",
    ];

    private static readonly string[] MovingVbdFields =
    [
        "userdevice", "bootable", "mode", "type", "unpluggable", "empty", "other_config", "qos_algorithm_type", "qos_algorithm_params",
    ];

    /// <summary>The disks with something in them; CDs and empty drives are left out.</summary>
    public static IReadOnlyList<VmDisk> Disks(PoolDatabase database, string vm) =>
    [
        .. database.GetSet("VM", vm, "VBDs")
            .Where(vbd => !database.GetBool("VBD", vbd, "empty") && database.GetString("VBD", vbd, "type") == "Disk")
            .Select(vbd => new VmDisk(
                vbd, database.GetRef("VBD", vbd, "VDI"), DeviceOf(database.GetString("VBD", vbd, "userdevice")),
                database.GetString("VBD", vbd, "mode") == "RO"))
            .OrderBy(static d => d.Device, StringComparer.Ordinal),
    ];

    /// <exception cref="XapiException">A disk is on no SR.</exception>
    public static Vm ForXenops(PoolDatabase database, string vm) => new()
    {
        Id = database.GetString("VM", vm, "uuid"),
        Name = database.GetString("VM", vm, "name_label"),
        MemoryBytes = database.GetLong("VM", vm, "memory_static_max"),
        Platform = database.GetMap("VM", vm, "platform"),
        Vbds =
        [
            .. Disks(database, vm).Select(disk => new Vbd
            {
                Device = disk.Device,
                Sr = database.GetString("SR", SrOf(database, disk), "uuid"),
                Vdi = database.GetString("VDI", disk.Vdi, "location"),
                Mode = disk.IsReadOnly ? "RO" : "RW",
            }),
        ],
    };

    /// <exception cref="XapiException">The disk's VDI is gone, or is on no SR.</exception>
    public static string SrOf(PoolDatabase database, VmDisk disk)
    {
        if (!database.Exists("VDI", disk.Vdi))
            throw new XapiException("HANDLE_INVALID", "VDI", disk.Vdi);
        string sr = database.GetRef("VDI", disk.Vdi, "SR");
        return database.Exists("SR", sr) ? sr : throw new XapiException("VDI_NOT_AVAILABLE", disk.Vdi);
    }

    /// <summary>The metadata that travels: records as XML-RPC structs, as in the field's ova.xml.</summary>
    public static JsonObject Export(PoolDatabase database, string vm) => new()
    {
        ["vm"] = XmlRpc.WriteResponse(Pick(database.Record("VM", vm), MovingFields)),
        ["vbds"] = new JsonObject(Disks(database, vm).Select(disk => KeyValuePair.Create(
            disk.Device, (JsonNode?)XmlRpc.WriteResponse(Pick(database.Record("VBD", disk.Vbd), MovingVbdFields))))),
    };

    /// <summary>Makes the VM's rows, halted, on other disks.</summary>
    /// <param name="vdiOf">The VDI for each device.</param>
    public static string Import(PoolDatabase database, JsonObject domain, IReadOnlyDictionary<string, string> vdiOf, string migration) =>
        database.Transaction(() =>
        {
            RpcStruct record = XmlRpc.ReadResponse((string)domain["vm"]!).AsStruct();
            string vm = database.Create("VM", record.Members.Where(static m => MovingFields.Contains(m.Key)).Select(static m => (m.Key, m.Value)));
            database.SetInMap("VM", vm, "other_config", ImportKey, migration);
            foreach ((string device, JsonNode? vbd) in domain["vbds"]!.AsObject())
            {
                database.Create("VBD",
                [
                    .. XmlRpc.ReadResponse((string)vbd!).AsStruct().Members.Where(static m => MovingVbdFields.Contains(m.Key)).Select(static m => (m.Key, m.Value)),
                    ("VM", vm), ("VDI", vdiOf[device]),
                ]);
            }

            return vm;
        });

    /// <summary>Marks a VM that is on its way in: found by it after a crash; taken away when it runs.</summary>
    public const string ImportKey = "import_migration";

    public static string? FindImported(PoolDatabase database, string migration) =>
        database.All("VM").FirstOrDefault(vm => database.GetMap("VM", vm, "other_config").GetValueOrDefault(ImportKey) == migration);

    /// <summary>The VM's rows and its VBDs'; its VDIs are somebody else's matter.</summary>
    public static void Destroy(PoolDatabase database, string vm) => database.Transaction(() =>
    {
        if (!database.Exists("VM", vm))
            return;
        foreach (string vbd in database.GetSet("VM", vm, "VBDs"))
            database.Destroy("VBD", vbd);
        database.Destroy("VM", vm);
    });

    /// <summary>What a change of power state means for the rows.</summary>
    public static void SetPowerState(PoolDatabase database, string vm, string state, string hostRef) => database.Transaction(() =>
    {
        bool isUp = state is "Running" or "Paused";
        database.Set("VM", vm, "power_state", state);
        database.Set("VM", vm, "resident_on", isUp ? hostRef : "OpaqueRef:NULL");
        foreach (VmDisk disk in Disks(database, vm))
            database.Set("VBD", disk.Vbd, "currently_attached", isUp);
    });

    private static RpcStruct Pick(RpcStruct record, string[] fields) =>
        new([.. record.Members.Where(m => fields.Contains(m.Key))]);

    /// <summary>The field writes 0 for xvda, or the name itself.</summary>
    private static string DeviceOf(string userDevice) =>
        int.TryParse(userDevice, CultureInfo.InvariantCulture, out int number) && number is >= 0 and < 26 ? $"xvd{(char)('a' + number)}" : userDevice;
}
