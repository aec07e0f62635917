// The rows that are always there: pool, host, host_metrics, the control domain and its metrics. Made at the first start, found again later;
// what only this run knows (address, versions, live) is written at each start.
using System.Net;
using System.Net.NetworkInformation;
using System.Net.Sockets;
using System.Reflection;
using StorageAccess.Wire;
using Xapi.Database;

namespace Xapi;

/// <summary>References of the rows that are always there.</summary>
public sealed record PoolRows(string Pool, string Host, string ControlDomain)
{
    private const long ControlDomainMemoryBytes = 1L << 30;

    /// <summary>The XenAPI that the data model describes (research: xapi.md, head).</summary>
    private const int ApiMajor = 2;
    private const int ApiMinor = 23;

    public static PoolRows Open(PoolDatabase database, XapiOptions options, TimeProvider time) => database.Transaction(() =>
    {
        PoolRows rows = database.All("pool") is [var pool, ..] ? Find(database, pool) : Create(database, options, time);
        rows.Refresh(database, options, time);
        return rows;
    });

    private static PoolRows Find(PoolDatabase database, string pool)
    {
        string host = database.GetRef("pool", pool, "master");
        return new PoolRows(pool, host, database.GetRef("host", host, "control_domain"));
    }

    private static PoolRows Create(PoolDatabase database, XapiOptions options, TimeProvider time)
    {
        string metrics = database.Create("host_metrics");
        string host = database.Create(
            "host",
            ("name_label", options.HostName),
            ("hostname", options.HostName),
            ("metrics", metrics),
            ("enabled", true),
            ("edition", "free"),
            ("API_version_vendor", "Storage"));
        string domain = database.Create(
            "VM",
            ("name_label", $"Control domain on host: {options.HostName}"),
            ("is_control_domain", true),
            ("power_state", "Running"),
            ("resident_on", host),
            ("affinity", host),
            ("memory_static_max", new RpcInt(ControlDomainMemoryBytes)),
            ("memory_dynamic_max", new RpcInt(ControlDomainMemoryBytes)),
            ("memory_dynamic_min", new RpcInt(ControlDomainMemoryBytes)),
            ("memory_static_min", new RpcInt(ControlDomainMemoryBytes)),
            ("VCPUs_max", new RpcInt(1)),
            ("VCPUs_at_startup", new RpcInt(1)),
            ("metrics", database.Create("VM_metrics", ("memory_actual", new RpcInt(ControlDomainMemoryBytes)), ("start_time", Now(time)))));
        database.Set("host", host, "control_domain", domain);
        string pool = database.Create("pool", ("name_label", options.PoolName), ("master", host));
        return new PoolRows(pool, host, domain);
    }

    private void Refresh(PoolDatabase database, XapiOptions options, TimeProvider time)
    {
        string version = Assembly.GetExecutingAssembly().GetName().Version?.ToString(3) ?? "0";
        database.Set("host", Host, "address", AddressOf(options.Https.Address));
        database.Set("host", Host, "API_version_major", new RpcInt(ApiMajor));
        database.Set("host", Host, "API_version_minor", new RpcInt(ApiMinor));
        database.Set("host", Host, "software_version", RpcValue.Map(new Dictionary<string, string>
        {
            ["product_brand"] = "Storage",
            ["product_version"] = version,
            ["build_number"] = version,
            ["platform_name"] = "Storage",
            ["platform_version"] = version,
            ["xapi"] = $"{ApiMajor}.{ApiMinor}",
            ["xapi_build"] = version,
        }));
        string metrics = database.GetRef("host", Host, "metrics");
        GCMemoryInfo memory = GC.GetGCMemoryInfo();
        long freeBytes = Math.Max(0, memory.TotalAvailableMemoryBytes - memory.MemoryLoadBytes);
        database.Set("host_metrics", metrics, "live", true);
        database.Set("host_metrics", metrics, "memory_total", new RpcInt(memory.TotalAvailableMemoryBytes));
        database.Set("host_metrics", metrics, "memory_free", new RpcInt(freeBytes));
        database.Set("host_metrics", metrics, "last_updated", Now(time));
    }

    private static RpcDateTime Now(TimeProvider time) => DateTimeType.Of(time.GetUtcNow());

    /// <summary>The address that others reach: of a server on all addresses, the first one of the machine.</summary>
    private static string AddressOf(IPAddress listening)
    {
        if (!listening.Equals(IPAddress.Any) && !listening.Equals(IPAddress.IPv6Any))
            return listening.ToString();
        IPAddress? first = NetworkInterface.GetAllNetworkInterfaces()
            .Where(static i => i.OperationalStatus == OperationalStatus.Up && i.NetworkInterfaceType != NetworkInterfaceType.Loopback)
            .SelectMany(static i => i.GetIPProperties().UnicastAddresses)
            .Select(static a => a.Address)
            .FirstOrDefault(static a => a.AddressFamily == AddressFamily.InterNetwork);
        return (first ?? IPAddress.Loopback).ToString();
    }
}
