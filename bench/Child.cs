// A whole process, started fresh and measured from outside: wall clock, CPU of everything it waited for, peak memory, and what the kernel
// counted as written by it and its children (write, copy_file_range and sendfile; 0 where the kernel does not count).
using System.Collections;
using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;

namespace Bench;

internal readonly record struct Cost(double WallSeconds, double CpuSeconds, double MemoryMiB, double WrittenMiB);

internal static partial class Child
{
    private const int UsageBytes = 144;
    private const int MaxMemoryOffset = 32;
    private const int Interrupted = 4;
    private const int ByProcessId = 1;
    private const int ExitedAndKept = 4 | 0x01000000; // WEXITED | WNOWAIT
    private const int SignalInfoBytes = 128;

    /// <exception cref="InvalidOperationException">It did not end with 0.</exception>
    public static Cost Run(string command)
    {
        string script = command.AsSpan().ContainsAny("|;&<>") ? command : "exec " + command;
        IEnumerable<DictionaryEntry> variables = Environment.GetEnvironmentVariables().Cast<DictionaryEntry>();
        string?[] environment = [.. variables.Select(static e => $"{e.Key}={e.Value}"), null];
        long start = Stopwatch.GetTimestamp();
        int error = posix_spawn(out int pid, "/bin/sh", 0, 0, ["sh", "-c", script, null], environment);
        if (error != 0)
            throw new InvalidOperationException($"cannot start a shell: errno {error}");
        double written = Written(pid);
        byte[] usage = new byte[UsageBytes];
        int status;
        while (wait4(pid, out status, 0, usage) != pid)
        {
            if (Marshal.GetLastPInvokeError() != Interrupted)
                throw new InvalidOperationException($"the child {pid} is lost: errno {Marshal.GetLastPInvokeError()}");
        }

        if (status != 0)
            throw new InvalidOperationException($"status {status} from: {command}");
        double wall = Stopwatch.GetElapsedTime(start).TotalSeconds;
        return new Cost(wall, Seconds(usage, 0) + Seconds(usage, 16), BitConverter.ToInt64(usage, MaxMemoryOffset) / 1024.0, written);

        static double Seconds(byte[] usage, int offset) =>
            BitConverter.ToInt64(usage, offset) + BitConverter.ToInt64(usage, offset + 8) / 1e6;
    }

    /// <summary>A command that waits for another to be true, ten seconds at the most: a daemon is not there yet when its parent returns.</summary>
    public static string Until(string condition) => $"timeout 10 sh -c \"until {condition}; do sleep 0.02; done\"";

    /// <summary>Whether a program is there to be run.</summary>
    public static bool Exists(string program) =>
        (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':').Any(folder => File.Exists(Path.Combine(folder, program)));

    /// <summary>Waits for its end and leaves it there as a zombie, whose counters can still be read.</summary>
    private static double Written(int pid)
    {
        byte[] information = new byte[SignalInfoBytes];
        while (waitid(ByProcessId, pid, information, ExitedAndKept) != 0)
        {
            if (Marshal.GetLastPInvokeError() != Interrupted)
                throw new InvalidOperationException($"the child {pid} is lost: errno {Marshal.GetLastPInvokeError()}");
        }

        try
        {
            string line = File.ReadLines($"/proc/{pid}/io").First(static line => line.StartsWith("wchar:", StringComparison.Ordinal));
            return long.Parse(line.AsSpan("wchar:".Length), CultureInfo.InvariantCulture) / (double)(1 << 20);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or InvalidOperationException)
        {
            return 0;
        }
    }

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int posix_spawn(
        out int pid, string path, nint actions, nint attributes, string?[] arguments, string?[] environment);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int waitid(int kind, int id, byte[] information, int options);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int wait4(int pid, out int status, int options, byte[] usage);
}
