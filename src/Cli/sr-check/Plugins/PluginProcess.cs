// Runs the plugin's programs as the toolstack would: a clean environment, bounded time and output, and when that fails everything that was
// started is ended. Keeps what was said, for the record of a failing check.
using System.Diagnostics;
using Platform;
using StorageAccess;

namespace SrCheck.Plugins;

/// <param name="ToolsFolder">Where <c>tapdisk</c>, <c>tap-ctl</c> and <c>vhd-util</c> are; comes first in PATH.</param>
internal sealed record CallSettings(string ToolsFolder, TimeSpan Deadline)
{
    /// <summary>The whole PATH instead of the usual one, for a world in which tools are missing.</summary>
    public string? SearchPath { get; init; }

    /// <summary>Ends the call in the middle, with everything it started.</summary>
    public CancellationToken Killed { get; init; }

    public IReadOnlyDictionary<string, string> ExtraEnvironment { get; init; } = new Dictionary<string, string>();
}

internal sealed class PluginProcess(string mark, IReadOnlyDictionary<string, string> environment, CallSettings settings)
{
    public const int OutputLimitBytes = 8 * 1024 * 1024;

    private const int KeptCalls = 400;
    private readonly Lock gate = new();
    private readonly Queue<PluginCall> calls = new();
    private int count;
    private int hangs;

    public CallSettings Settings { get; set; } = settings;

    /// <summary>The latest calls, oldest first.</summary>
    public IReadOnlyList<PluginCall> Calls
    {
        get
        {
            lock (gate)
                return [.. calls];
        }
    }

    public async Task<PluginCall> RunAsync(string name, string program, IReadOnlyList<string> arguments, string standardInput)
    {
        CallSettings now = Settings;
        string callMark = $"{mark}/{Interlocked.Increment(ref count)}.";
        Dictionary<string, string> ours = new(environment) { [MarkedProcesses.Variable] = callMark };
        foreach ((string key, string value) in now.ExtraEnvironment)
            ours[key] = value;
        if (now.SearchPath is { } path)
            ours["PATH"] = path;
        Dictionary<string, string?> whole = DriverEnvironment.Create(now.ToolsFolder, ours);
        long start = Stopwatch.GetTimestamp();
        ChildResult result = new(-1, "", "");
        string? noAnswer = null;
        try
        {
            result = await ChildProcess.RunAsync(
                program, arguments, standardInput, whole, now.Deadline, OutputLimitBytes, now.Killed);
        }
        catch (ChildProcessException e)
        {
            noAnswer = e.Message;
            if (Stopwatch.GetElapsedTime(start) >= now.Deadline)
                Interlocked.Increment(ref hangs);
        }
        catch (OperationCanceledException)
        {
            noAnswer = "it was killed by the kit";
        }
        catch (IOException e)
        {
            noAnswer = e.Message;
        }

        if (noAnswer is not null)
            MarkedProcesses.End(callMark);
        PluginCall call = new(
            name, program, arguments, standardInput, ours, result.ExitCode, result.StandardOutput, result.StandardError, noAnswer,
            Stopwatch.GetElapsedTime(start));
        Keep(call);
        return call;
    }

    /// <summary>How many calls passed the deadline since it was last asked.</summary>
    public int TakeHangs() => Interlocked.Exchange(ref hangs, 0);

    private void Keep(PluginCall call)
    {
        lock (gate)
        {
            if (calls.Count == KeptCalls)
                calls.Dequeue();
            calls.Enqueue(call);
        }
    }
}
