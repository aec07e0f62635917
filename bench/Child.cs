// A whole process, started fresh and measured from outside: wall clock, CPU of everything it waited for, peak memory.
using System.Collections;
using System.Diagnostics;
using System.Runtime.InteropServices;

namespace Bench;

internal readonly record struct Cost(double WallSeconds, double CpuSeconds, double MemoryMiB);

internal static partial class Child
{
    private const int UsageBytes = 144;
    private const int MaxMemoryOffset = 32;
    private const int Interrupted = 4;

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
        return new Cost(wall, Seconds(usage, 0) + Seconds(usage, 16), BitConverter.ToInt64(usage, MaxMemoryOffset) / 1024.0);

        static double Seconds(byte[] usage, int offset) =>
            BitConverter.ToInt64(usage, offset) + BitConverter.ToInt64(usage, offset + 8) / 1e6;
    }

    /// <summary>A command that waits for another to be true, ten seconds at the most: a daemon is not there yet when its parent returns.</summary>
    public static string Until(string condition) => $"timeout 10 sh -c \"until {condition}; do sleep 0.02; done\"";

    /// <summary>Whether a program is there to be run.</summary>
    public static bool Exists(string program) =>
        (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':').Any(folder => File.Exists(Path.Combine(folder, program)));

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int posix_spawn(
        out int pid, string path, nint actions, nint attributes, string?[] arguments, string?[] environment);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int wait4(int pid, out int status, int options, byte[] usage);
}
