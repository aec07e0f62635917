namespace Bench;

/// <summary>
/// Where a bench puts its files: memory that costs nothing where root may mount it, a temporary folder otherwise. Gone at the end.
/// </summary>
internal sealed class Ground : IDisposable
{
    private readonly bool isMounted;

    public Ground(string? folder)
    {
        Path = Directory.CreateTempSubdirectory("storage-bench-").FullName;
        if (folder is not null)
        {
            Directory.Delete(Path);
            Path = Directory.CreateDirectory(System.IO.Path.Combine(folder, System.IO.Path.GetFileName(Path))).FullName;
            return;
        }

        try
        {
            // The host takes free pages away and gives them back slowly: huge pages of our own are touched once, in the round that is
            // dropped.
            isMounted = Child.Run($"mount -t tmpfs -o huge=always,size=16G tmpfs '{Path}' 2>/dev/null").WallSeconds >= 0;
        }
        catch (InvalidOperationException)
        {
            // Not root: the file system under the temporary folder will do, and the table says so.
        }
    }

    public string Path { get; }

    public string Kind => isMounted ? "tmpfs with huge pages" : "the file system of " + System.IO.Path.GetDirectoryName(Path);

    public void Dispose()
    {
        if (isMounted)
            Child.Run($"umount -l '{Path}'");
        Directory.Delete(Path, recursive: true);
    }
}
