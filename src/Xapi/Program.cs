// xapi serve --config FILE: the daemon. Ready means one line on standard output and STATE/endpoints.json; SIGTERM and SIGINT end it with
// exit code 0.
using System.CommandLine;
using System.Runtime.InteropServices;
using Microsoft.Extensions.Logging;
using Xapi;

Option<FileInfo> config = new("--config") { Description = "the configuration, a JSON file", Required = true };
Command serve = new("serve", "Runs the daemon.") { config };
serve.SetAction((parsed, cancellationToken) => ServeAsync(parsed.GetValue(config)!.FullName, cancellationToken));
RootCommand root = new("The pool's daemon: XenAPI server, database, storage and migration.") { serve };
return await root.Parse(args).InvokeAsync(new InvocationConfiguration { ProcessTerminationTimeout = null });

static async Task<int> ServeAsync(string path, CancellationToken cancellationToken)
{
    using CancellationTokenSource stop = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
    using PosixSignalRegistration term = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Stop);
    using PosixSignalRegistration interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Stop);
    using ILoggerFactory logging = LoggerFactory.Create(static log => log
        .SetMinimumLevel(LogLevel.Warning)
        .AddConsole(static o => o.LogToStandardErrorThreshold = LogLevel.Trace));
    try
    {
        await using Daemon daemon = await Daemon.StartAsync(XapiOptions.Read(path), logging, TimeProvider.System, stop.Token);
        Console.WriteLine($"xapi: ready on {daemon.Server.HttpsUrl}");
        await Task.Delay(Timeout.Infinite, stop.Token).ContinueWith(static _ => { }, TaskScheduler.Default);
        return 0;
    }
    catch (OperationCanceledException) when (stop.IsCancellationRequested)
    {
        return 0;
    }
    catch (Exception e) when (e is IOException or UnauthorizedAccessException or XapiOptionsException)
    {
        await Console.Error.WriteLineAsync($"xapi: {e.Message}");
        return 1;
    }

    void Stop(PosixSignalContext signal)
    {
        signal.Cancel = true;
        stop.Cancel();
    }
}
