// This host's xenopsd: found running or started, watched, and started again when it dies. It outlives us while it holds a VM: that is why
// it is a process of its own.
using System.Diagnostics;
using Microsoft.Extensions.Logging;
using Platform;
using Xenops;

namespace Xapi.Vms;

public sealed partial class XenopsHost : IAsyncDisposable
{
    private const int Sigterm = 15;
    private static readonly TimeSpan StartLimit = TimeSpan.FromSeconds(20);
    private static readonly TimeSpan StopLimit = TimeSpan.FromSeconds(15);

    /// <summary>Long, because a pre-copy answers when it has converged.</summary>
    private static readonly TimeSpan CallDeadline = TimeSpan.FromHours(12);
    private static readonly TimeSpan QueryDeadline = TimeSpan.FromSeconds(5);

    /// <summary>How often it is looked at: a death is noticed within this.</summary>
    private static readonly TimeSpan WatchInterval = TimeSpan.FromMilliseconds(200);

    /// <summary>Between tries to start one that will not start; doubles up to the limit.</summary>
    private static readonly TimeSpan RetryAfter = TimeSpan.FromSeconds(1);
    private static readonly TimeSpan RetryLimit = TimeSpan.FromSeconds(30);

    private readonly CancellationTokenSource stopping = new();
    private readonly XenopsClient queries;
    private readonly string program;
    private readonly string[] arguments;
    private readonly string logPath;
    private readonly ILogger log;
    private Task supervising = Task.CompletedTask;
    private int processId;

    private XenopsHost(XapiOptions options, string certificatePath, ILogger log)
    {
        string socket = Path.Combine(options.RuntimeDirectory, "xenopsd");
        string state = Directory.CreateDirectory(Path.Combine(options.StateDirectory, "xenopsd")).FullName;
        Client = new XenopsClient(socket, CallDeadline);
        queries = new XenopsClient(socket, QueryDeadline);
        program = Path.Combine(options.ToolsDirectory, "xenopsd");
        arguments =
        [
            "--socket", socket, "--state", state, "--storage-socket", Path.Combine(options.RuntimeDirectory, "storage"),
            "--listen", options.Https.Address.ToString(), "--certificate", certificatePath,
        ];
        logPath = Path.Combine(state, "xenopsd.log");
        this.log = log;
    }

    public XenopsClient Client { get; }

    public static async Task<XenopsHost> StartAsync(XapiOptions options, string certificatePath, ILogger log, CancellationToken cancellationToken)
    {
        XenopsHost host = new(options, certificatePath, log);
        if (!await host.IsThereAsync(cancellationToken))
            await host.StartProcessAsync(cancellationToken);
        return host;
    }

    /// <summary>From now on a xenopsd that dies is started again, until we are disposed.</summary>
    /// <param name="reconcile">Called after each new start: makes the rows agree with the guests that are left.</param>
    public void Supervise(Func<CancellationToken, Task> reconcile) => supervising = SuperviseAsync(reconcile, stopping.Token);

    /// <summary>Stops xenopsd when it holds no VM; otherwise leaves it to the next daemon.</summary>
    public async ValueTask DisposeAsync()
    {
        await stopping.CancelAsync();
        await supervising;
        try
        {
            IReadOnlyList<Vm> vms = await queries.VmListAsync("stop", CancellationToken.None);
            if (vms.Count == 0)
                await StopAsync();
            else
                LogLeft(vms.Count);
        }
        catch (IOException)
        {
            // It is gone already.
        }

        queries.Dispose();
        Client.Dispose();
        stopping.Dispose();
    }

    private async Task SuperviseAsync(Func<CancellationToken, Task> reconcile, CancellationToken cancellationToken)
    {
        try
        {
            while (true)
            {
                while (ProcessTable.IsAlive(processId))
                    await Task.Delay(WatchInterval, cancellationToken);
                LogDied(processId);
                await StartAgainAsync(reconcile, cancellationToken);
            }
        }
        catch (OperationCanceledException) when (cancellationToken.IsCancellationRequested)
        {
            // The daemon ends.
        }
    }

    private async Task StartAgainAsync(Func<CancellationToken, Task> reconcile, CancellationToken cancellationToken)
    {
        for (TimeSpan wait = RetryAfter; ; wait = wait * 2 < RetryLimit ? wait * 2 : RetryLimit)
        {
            try
            {
                if (!await IsThereAsync(cancellationToken))
                    await StartProcessAsync(cancellationToken);
                await reconcile(cancellationToken);
                LogBack(processId);
                return;
            }
            catch (Exception e) when (e is IOException or XenopsException)
            {
                LogNotBack(e.Message, wait.TotalSeconds);
                await Task.Delay(wait, cancellationToken);
            }
        }
    }

    /// <exception cref="IOException">It does not answer, or ended; its log says why.</exception>
    private async Task StartProcessAsync(CancellationToken cancellationToken)
    {
        using Process process = ChildProcess.StartDaemon(program, arguments, logPath, new Dictionary<string, string?>());
        long start = Stopwatch.GetTimestamp();
        while (!await IsThereAsync(cancellationToken))
        {
            if (process.HasExited || Stopwatch.GetElapsedTime(start) > StartLimit)
                throw new IOException($"xenopsd did not start; see {logPath}");
            await Task.Delay(20, cancellationToken);
        }
    }

    private async Task StopAsync()
    {
        if (!Posix.TryKill(processId, Sigterm))
            return;
        long start = Stopwatch.GetTimestamp();
        while (ProcessTable.IsAlive(processId))
        {
            if (Stopwatch.GetElapsedTime(start) > StopLimit)
            {
                LogSlow(StopLimit.TotalSeconds);
                return;
            }

            await Task.Delay(10);
        }
    }

    private async Task<bool> IsThereAsync(CancellationToken cancellationToken)
    {
        try
        {
            processId = (await queries.QueryAsync(cancellationToken)).ProcessId;
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

    [LoggerMessage(Level = LogLevel.Error, Message = "xenopsd (process {ProcessId}) died and is started again")]
    private partial void LogDied(int processId);

    [LoggerMessage(Level = LogLevel.Warning, Message = "xenopsd is back (process {ProcessId})")]
    private partial void LogBack(int processId);

    [LoggerMessage(Level = LogLevel.Error, Message = "xenopsd is not back, and tried again in {Seconds} s: {Why}")]
    private partial void LogNotBack(string why, double seconds);
}
