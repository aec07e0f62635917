using Platform;

namespace SrCheck;

/// <summary>A file system of a few MiB in memory; needs root. Gone, with what is in it, when disposed.</summary>
internal sealed class SmallFileSystem : IAsyncDisposable
{
    private static readonly TimeSpan Deadline = TimeSpan.FromSeconds(10);
    private readonly string folder;

    private SmallFileSystem(string folder) => this.folder = folder;

    private string Ballast => Path.Combine(folder, "ballast");

    /// <exception cref="Checks.NotApplicableException">This machine does not let us.</exception>
    public static async Task<SmallFileSystem> MountAsync(string folder, int sizeMiB)
    {
        Directory.CreateDirectory(folder);
        ChildResult result = await RunAsync("mount", "-t", "tmpfs", "-o", $"size={sizeMiB}m", "sr-check", folder);
        return result.ExitCode == 0
            ? new SmallFileSystem(folder)
            : throw new Checks.NotApplicableException($"a small file system cannot be mounted here: {result.StandardError.Trim()}");
    }

    /// <summary>Leaves no room at all.</summary>
    public void Fill()
    {
        byte[] chunk = new byte[64 * 1024];
        using FileStream file = new(Ballast, FileMode.Create, FileAccess.Write, FileShare.None, bufferSize: 0);
        for (int size = chunk.Length; size >= 512;)
        {
            try
            {
                file.Write(chunk, 0, size);
            }
            catch (IOException)
            {
                size /= 2;
            }
        }
    }

    public void Relieve() => File.Delete(Ballast);

    public async ValueTask DisposeAsync() => await RunAsync("umount", "-l", folder);

    private static Task<ChildResult> RunAsync(string program, params string[] arguments) => ChildProcess.RunAsync(
        program, arguments, "", new Dictionary<string, string?>(), Deadline, 65536, CancellationToken.None);
}
