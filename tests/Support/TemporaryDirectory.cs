namespace Support;

/// <summary>A folder of its own for one test, removed at its end.</summary>
public sealed class TemporaryDirectory : IDisposable
{
    public TemporaryDirectory() => Path = Directory.CreateTempSubdirectory("storage-test-").FullName;

    private TemporaryDirectory(string path) => Path = path;

    public string Path { get; }

    /// <summary>In memory, where a sync costs nothing, on a machine that has such a folder.</summary>
    public static TemporaryDirectory InMemory()
    {
        const string memory = "/dev/shm";
        return Directory.Exists(memory)
            ? new TemporaryDirectory(Directory.CreateDirectory(System.IO.Path.Combine(memory, $"storage-test-{Guid.NewGuid():n}")).FullName)
            : new TemporaryDirectory();
    }

    public string File(string name) => System.IO.Path.Combine(Path, name);

    public void Dispose() => Directory.Delete(Path, recursive: true);
}
