namespace Xe.Api;

/// <summary>Pools trusted at their first use: a line <c>HOST:PORT FINGERPRINT</c> for each, in the user's configuration (XDG).</summary>
internal sealed class KnownPools(string path)
{
    private const int FileLimitBytes = 1 << 20;

    public string Path { get; } = path;

    public static KnownPools OfUser(Func<string, string?> environment)
    {
        string folder = environment("XDG_CONFIG_HOME") is { Length: > 0 } given
            ? given
            : System.IO.Path.Combine(environment("HOME") ?? "/", ".config");
        return new KnownPools(System.IO.Path.Combine(folder, "xe", "known_pools"));
    }

    public string? Find(string pool) => Lines()
        .Select(static line => line.Split(' ', StringSplitOptions.RemoveEmptyEntries))
        .Where(parts => parts.Length == 2 && parts[0] == pool)
        .Select(static parts => parts[1])
        .LastOrDefault();

    /// <summary>Whole or not at all: the file is replaced.</summary>
    public void Add(string pool, string fingerprint)
    {
        string folder = System.IO.Path.GetDirectoryName(Path)!;
        Directory.CreateDirectory(folder, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        string temporary = $"{Path}.{Environment.ProcessId}";
        File.WriteAllLines(temporary, [.. Lines(), $"{pool} {fingerprint}"]);
        File.Move(temporary, Path, overwrite: true);
    }

    private string[] Lines()
    {
        FileInfo file = new(Path);
        if (!file.Exists)
            return [];
        return file.Length <= FileLimitBytes ? File.ReadAllLines(Path) : throw new IOException($"{Path} is larger than {FileLimitBytes} bytes");
    }
}
