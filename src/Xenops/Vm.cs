// What a caller tells us of a VM and of its disks (research: xenopsd.md 1.4, cut down to what a domain here needs). The JSON names are
// snake_case.
using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using StorageAccess;

namespace Xenops;

/// <summary>One virtual disk as the guest sees it. Mode is <c>RW</c> or <c>RO</c>.</summary>
public sealed record Vbd
{
    public required string Device { get; init; }

    public required string Sr { get; init; }

    public required string Vdi { get; init; }

    public string Mode { get; init; } = "RW";

    [JsonIgnore]
    public VdiAccess Access => Mode == "RO" ? VdiAccess.ReadOnly : VdiAccess.ReadWrite;
}

/// <summary>A VM's record: <c>{"id","name","memory_bytes","domain","vbds":[…],"platform":{…}}</c>.</summary>
public sealed record Vm
{
    private const long MemoryLimitBytes = 1L << 30; // One managed array; the simulator needs no more.
    private const int VbdLimit = 16;
    private const int PlatformLimit = 64;

    public required string Id { get; init; }

    public string Name { get; init; } = "unnamed";

    public long MemoryBytes { get; init; } = 64L << 20;

    /// <summary>The backend that runs it.</summary>
    public string Domain { get; init; } = "simulator";

    public IReadOnlyList<Vbd> Vbds { get; init; } = [];

    public IReadOnlyDictionary<string, string> Platform { get; init; } = new Dictionary<string, string>();

    /// <exception cref="XenopsException">A member is missing or outside its limits; says which.</exception>
    public static Vm Parse(JsonNode? node)
    {
        try
        {
            Vm vm = node.Deserialize<Vm>(Json.Options) ?? throw XenopsException.Internal("the parameter \"vm\" is null");
            vm.Check();
            return vm;
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or ArgumentException)
        {
            // The last two: text that is no text (half a surrogate pair), and a name that comes twice.
            throw XenopsException.Internal($"the parameter \"vm\" is not a VM's record: {e.Message}");
        }
    }

    public JsonNode ToJson() => JsonSerializer.SerializeToNode(this, Json.Options)!;

    internal DatapathId DatapathOf(Vbd vbd) => new($"vbd/{Id}/{vbd.Device}");

    private void Check()
    {
        Require(Guid.TryParseExact(Id, "D", out _), $"vm.id \"{Id}\" is not a uuid");
        Require(Name is { Length: <= 256 }, "vm.name is null or longer than 256 characters");
        Require(
            MemoryBytes is >= 1 << 20 and <= MemoryLimitBytes && MemoryBytes % GuestMemory.PageSizeBytes == 0,
            $"vm.memory_bytes {MemoryBytes} is not a multiple of {GuestMemory.PageSizeBytes} between 1 MiB and {MemoryLimitBytes} bytes");
        Require(Domain is not null, "vm.domain is null");
        Require(Vbds is { Count: <= VbdLimit } && Vbds.All(static v =>
            v is not null), $"vm.vbds is null, has a null, or has more than {VbdLimit} members");
        Require(
            Platform is { Count: <= PlatformLimit } && Platform.All(static p => p.Value is { Length: <= 1024 }),
            $"vm.platform is null, has more than {PlatformLimit} members, or a value that is null or longer than 1024 characters");
        foreach (Vbd vbd in Vbds)
        {
            Require(
                vbd.Device is { Length: > 0 and <= 16 } && vbd.Device.All(char.IsAsciiLetterOrDigit),
                $"vbd.device \"{vbd.Device}\" is not 1 to 16 letters and digits");
            Require(!string.IsNullOrEmpty(vbd.Sr) && !string.IsNullOrEmpty(vbd.Vdi), $"the VBD {vbd.Device} names no SR or no VDI");
            Require(vbd.Mode is "RW" or "RO", $"the VBD {vbd.Device} has the mode \"{vbd.Mode}\", not RW or RO");
        }

        Require(Vbds.Select(static v => v.Device).Distinct().Count() == Vbds.Count, "two VBDs have the same device");
    }

    private static void Require(bool holds, string otherwise)
    {
        if (!holds)
            throw XenopsException.Internal(otherwise);
    }
}

/// <summary>How records look as JSON on our socket and in the memory stream.</summary>
internal static class Json
{
    public static readonly JsonSerializerOptions Options = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower };
}
