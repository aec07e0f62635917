using StorageAccess;

namespace Support;

/// <summary>A host whose boots and dead servers a test decides.</summary>
public sealed class FakeReality : IHostReality
{
    public string HostName => "host-a";

    public string BootId { get; set; } = "boot-1";

    /// <summary>Whether anybody serves anything.</summary>
    public bool IsServing { get; set; } = true;

    public bool IsServed(Backend backend) => IsServing;

    public string? ServerOf(Backend backend) => IsServing ? "tapdisk[4711]" : null;
}
