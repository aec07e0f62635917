// sr-gc as a process of its own: one for each folder, kept so by a lock that also names it. A driver starts it detached when it left
// something to collect, and stops it before it lets go of the folder.
using System.Diagnostics;
using System.Globalization;
using Platform;
using StorageAccess.Tap;

namespace VhdFolder;

public static class CollectorProcess
{
    private const string Program = "sr-gc";
    private const string LockName = ".gc.lock";
    private const int Terminate = 15;
    private static readonly TimeSpan StopLimit = TimeSpan.FromSeconds(45);
    private static readonly TimeSpan Poll = TimeSpan.FromMilliseconds(20);

    /// <summary>The right to collect a folder; null when a collector that has it does not end in time.</summary>
    public static async Task<FileLock?> TryBeginAsync(string folder, TimeSpan wait, CancellationToken cancellationToken)
    {
        long end = Environment.TickCount64 + (long)wait.TotalMilliseconds;
        FileLock? held;
        while ((held = FileLock.TryTake(Path.Combine(folder, LockName), isExclusive: true)) is null)
        {
            if (Environment.TickCount64 >= end)
                return null;
            await Task.Delay(Poll, cancellationToken);
        }

        held.Write(Environment.ProcessId.ToString(CultureInfo.InvariantCulture));
        return held;
    }

    /// <summary>
    /// Starts a collector when there is something to collect; what it says goes to <c>sr-gc.log</c> in the control folder. Nothing that
    /// goes wrong here is the caller's failure.
    /// </summary>
    /// <param name="isOff">The SR is not to be collected (device_config <c>gc=off</c>).</param>
    public static void StartFor(DiskFolder folder, bool isOff)
    {
        string? program = FindProgram();
        if (isOff || program is null)
            return;
        try
        {
            if (!folder.HasGarbage())
                return;
            string control = ControlDirectory();
            Directory.CreateDirectory(control);
            // It waits for another one that is about to end, and may have looked before the change.
            using Process started = ChildProcess.StartDaemon(
                program, [folder.Path, "--detach", "--wait", "5"], Path.Combine(control, "sr-gc.log"), new Dictionary<string, string?>());
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or System.ComponentModel.Win32Exception)
        {
            Console.Error.WriteLine($"no collector was started for {folder.Path}: {e.Message}");
        }
    }

    /// <summary>Ends the collector of a folder, in order.</summary>
    /// <exception cref="DriverException">46: it did not end in time.</exception>
    public static async Task StopAsync(string folder, CancellationToken cancellationToken)
    {
        string path = Path.Combine(folder, LockName);
        long end = Environment.TickCount64 + (long)StopLimit.TotalMilliseconds;
        while (Environment.TickCount64 < end)
        {
            if (!FileLock.IsHeld(path))
                return;
            // While the lock is held its holder lives, and wrote who it is.
            if (int.TryParse(FileLock.Read(path), NumberStyles.None, CultureInfo.InvariantCulture, out int processId)
                && ProcessTable.NameOf(processId).StartsWith(Program, StringComparison.Ordinal))
                Posix.TryKill(processId, Terminate);
            await Task.Delay(Poll, cancellationToken);
        }

        throw new DriverException(
            DriverException.Unavailable, $"the collector of {folder} did not end within {StopLimit.TotalSeconds:0} s");
    }

    private static string ControlDirectory() =>
        Environment.GetEnvironmentVariable("BLKTAP_CONTROL_DIRECTORY") is { Length: > 0 } directory
            ? directory : TapControl.DefaultDirectory;

    private static string? FindProgram() =>
        (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':').Prepend(AppContext.BaseDirectory)
            .Where(static folder => folder.Length > 0).Select(static folder => Path.Combine(folder, Program)).FirstOrDefault(File.Exists);
}
