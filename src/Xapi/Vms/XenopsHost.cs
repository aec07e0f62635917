// This host's xenopsd: found running or started. It outlives us while it holds a VM: that is why it is a process of its own.
using System.Diagnostics;
using System.Globalization;
using Microsoft.Extensions.Logging;
using Platform;
using StorageAccess.Wire;
using Xenops;

namespace Xapi.Vms;

public sealed partial class XenopsHost : IAsyncDisposable
{
    private const int Sigterm = 15;
    private static readonly TimeSpan StartLimit = TimeSpan.FromSeconds(20);
    private static readonly TimeSpan StopLimit = TimeSpan.FromSeconds(15);

    /// <summary>Long, because a pre-copy answers when it has converged.</summary>
    private static readonly TimeSpan CallDeadline = TimeSpan.FromHours(12);

    private readonly string pidPath;
    private readonly ILogger log;

    private XenopsHost(XenopsClient client, string pidPath, ILogger log)
    {
        Client = client;
        this.pidPath = pidPath;
        this.log = log;
    }

    public XenopsClient Client { get; }

    public static async Task<XenopsHost> StartAsync(XapiOptions options, string certificatePath, ILogger log, CancellationToken cancellationToken)
    {
        string socket = Path.Combine(options.RuntimeDirectory, "xenopsd");
        string state = Path.Combine(options.StateDirectory, "xenopsd");
        Directory.CreateDirectory(state);
        string pidPath = Path.Combine(state, "pid");
        XenopsHost host = new(new XenopsClient(socket, CallDeadline), pidPath, log);
        if (await host.AnswersAsync(cancellationToken))
            return host;
        using Process process = ChildProcess.StartDaemon(
            Path.Combine(options.ToolsDirectory, "xenopsd"),
            [
                "--socket", socket, "--state", state, "--storage-socket", Path.Combine(options.RuntimeDirectory, "storage"),
                "--listen", options.Https.Address.ToString(), "--certificate", certificatePath,
            ],
            Path.Combine(state, "xenopsd.log"),
            new Dictionary<string, string?>());
        await File.WriteAllTextAsync(pidPath, process.Id.ToString(CultureInfo.InvariantCulture), cancellationToken);
        long start = Stopwatch.GetTimestamp();
        while (!await host.AnswersAsync(cancellationToken))
        {
            if (process.HasExited || Stopwatch.GetElapsedTime(start) > StartLimit)
                throw new IOException($"xenopsd did not start; see {Path.Combine(state, "xenopsd.log")}");
            await Task.Delay(20, cancellationToken);
        }

        return host;
    }

    /// <summary>Stops xenopsd when it holds no VM; otherwise leaves it to the next daemon.</summary>
    public async ValueTask DisposeAsync()
    {
        try
        {
            IReadOnlyList<Vm> vms = await Client.VmListAsync("stop", CancellationToken.None);
            if (vms.Count == 0)
                await StopAsync();
            else
                LogLeft(vms.Count);
        }
        catch (IOException)
        {
            // It is gone already.
        }

        Client.Dispose();
    }

    private async Task StopAsync()
    {
        if (!File.Exists(pidPath) || !int.TryParse(await File.ReadAllTextAsync(pidPath), CultureInfo.InvariantCulture, out int pid))
            return;
        try
        {
            using Process process = Process.GetProcessById(pid);
            if (!process.ProcessName.StartsWith("xenopsd", StringComparison.Ordinal))
                return; // The number was given to somebody else.
            Posix.TryKill(pid, Sigterm);
            using CancellationTokenSource limit = new(StopLimit);
            await process.WaitForExitAsync(limit.Token);
        }
        catch (ArgumentException)
        {
            // It ended by itself.
        }
        catch (OperationCanceledException)
        {
            LogSlow(StopLimit.TotalSeconds);
        }

        File.Delete(pidPath);
    }

    private async Task<bool> AnswersAsync(CancellationToken cancellationToken)
    {
        try
        {
            await Client.VmListAsync("start", cancellationToken);
            return true;
        }
        catch (IOException)
        {
            return false;
        }
    }

    [LoggerMessage(Level = LogLevel.Warning, Message = "xenopsd holds {Count} VMs and was left running")]
    private partial void LogLeft(int count);

    [LoggerMessage(Level = LogLevel.Warning, Message = "xenopsd did not stop within {Seconds} s")]
    private partial void LogSlow(double seconds);
}
