using Platform;

namespace Support;

/// <summary>A judge that we did not write (qemu-img, nbdinfo, …), run to its end with a deadline.</summary>
public static class Tool
{
    public static bool Exists(string name) =>
        (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':').Any(folder => File.Exists(Path.Combine(folder, name)));

    /// <summary>The reason to skip when a tool is missing, for Skip.IfNot.</summary>
    public static string Missing(string name) => $"{name} is not installed (./test installs it when it is root)";

    public static Task<ChildResult> RunAsync(string name, params string[] arguments) =>
        ChildProcess.RunAsync(
            name, arguments, "", new Dictionary<string, string?>(), TimeSpan.FromMinutes(2), 64 * 1024 * 1024, CancellationToken.None);
}
