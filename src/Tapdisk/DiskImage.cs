using Platform;
using StorageAccess.Tap;
using Vhd;

namespace Tapdisk;

/// <summary>An opened <c>type:path</c> with what statistics say of it.</summary>
/// <param name="Paths">Leaf first.</param>
internal sealed record DiskImage(string Arguments, string TypeName, int TypeNumber, IReadOnlyList<string> Paths, IBlockDevice Device)
{
    // The collector may be about to pause this very disk: who waited longer for its lease would keep it waiting.
    private static readonly TimeSpan LeaseLimit = TimeSpan.FromSeconds(1);

    /// <summary>A lease of a VHD in an SR folder; null for any other, and when the collector does not let go of it.</summary>
    public IDisposable? TakeLease()
    {
        try
        {
            return TypeName == "vhd" ? ImageLease.Take(Paths[0], LeaseLimit) : null;
        }
        catch (BlockIoException e)
        {
            Log.Write($"{Paths[0]} is mirrored without a lease: {e.Message}");
            return null;
        }
    }

    /// <exception cref="IOException">The type is not one of ours, or the image is refused; nothing is open then.</exception>
    public static DiskImage Open(string arguments, bool isReadOnly)
    {
        int colon = arguments.IndexOf(':', StringComparison.Ordinal);
        string type = colon < 0 ? "" : arguments[..colon];
        string path = arguments[(colon + 1)..];
        switch (type)
        {
            case "vhd":
                VhdChain chain = VhdChain.Open(path, new VhdOpenOptions { IsReadOnly = isReadOnly });
                return new DiskImage(arguments, type, 4, [path, .. chain.Paths.Skip(1)], chain);
            case "aio":
                return new DiskImage(arguments, type, 0, [path], new RawFile(path, isReadOnly));
            default:
                throw new TapException((int)Errno.EINVAL, $"'{arguments}' is neither vhd:PATH nor aio:PATH; nothing was opened");
        }
    }
}
