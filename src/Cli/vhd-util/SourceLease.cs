using Vhd;

namespace VhdUtil;

/// <summary>What is read in an SR folder is kept from its collector until it is read (docs/formats/sr-folder.md).</summary>
internal static class SourceLease
{
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);

    /// <summary>Null for a disk that lies in no SR folder.</summary>
    public static IDisposable? Take(string path) => ImageLease.Take(path, Limit);
}
