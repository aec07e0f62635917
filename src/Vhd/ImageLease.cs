// `.lease-<key>`: somebody copies, mirrors or backs up an image of an SR folder, and the collector leaves its chain alone. Shared by all
// who do; the kernel lets go when they die (docs/formats/sr-folder.md).
using Platform;
using Vhd.Collect;

namespace Vhd;

public static class ImageLease
{
    internal const string Prefix = ".lease-";

    private static readonly TimeSpan Poll = TimeSpan.FromMilliseconds(10);

    /// <summary>
    /// Takes a lease of an image in an SR folder (one with <c>.sr.json</c>); for any other file, and where no file can be made, there is
    /// none to take, and null. Waits while the collector is at the image, which it is for seconds at most.
    /// </summary>
    /// <exception cref="BlockIoException">EBUSY: the collector did not let go in time.</exception>
    public static IDisposable? Take(string imagePath, TimeSpan limit)
    {
        string folder = Path.GetDirectoryName(Path.GetFullPath(imagePath))!;
        string key = Path.GetFileNameWithoutExtension(imagePath);
        if (Path.GetExtension(imagePath) != ".vhd" || !ImageFolder.IsKey(key) || !File.Exists(Path.Combine(folder, ".sr.json")))
            return null;
        long end = Environment.TickCount64 + (long)limit.TotalMilliseconds;
        try
        {
            while (true)
            {
                if (FileLock.TryTake(Path.Combine(folder, Prefix + key), isExclusive: false) is { } lease)
                    return lease;
                if (Environment.TickCount64 >= end)
                    throw new BlockIoException(Errno.EBUSY, $"the collector has held {imagePath} for {limit.TotalSeconds:0.#} s");
                Thread.Sleep(Poll);
            }
        }
        catch (BlockIoException e) when (e.Errno is Errno.EROFS or Errno.EACCES)
        {
            return null; // No collector of ours can write there either, or it is not ours to keep away.
        }
    }
}
