using System.Diagnostics;
using Nbd;
using Support;

namespace Conformance.NbdTests;

/// <summary>Somebody else's NBD server on a unix socket, ended with the test.</summary>
internal sealed class NbdServerProcess : IAsyncDisposable
{
    private readonly Process process;

    private NbdServerProcess(Process process, string socketPath)
    {
        this.process = process;
        SocketPath = socketPath;
    }

    public string SocketPath { get; }

    /// <summary>Starts the program (its arguments must make it listen on <paramref name="socketPath"/>) and waits until it does.</summary>
    public static async Task<NbdServerProcess> StartAsync(string program, string socketPath, params string[] arguments)
    {
        ProcessStartInfo start = new(program) { UseShellExecute = false, RedirectStandardInput = true };
        foreach (string argument in arguments)
            start.ArgumentList.Add(argument);
        NbdServerProcess server = new(Process.Start(start)!, socketPath);
        DateTime deadline = DateTime.UtcNow.AddSeconds(20);
        while (!File.Exists(socketPath))
        {
            Assert.False(server.process.HasExited || DateTime.UtcNow > deadline, $"{program} did not start to listen");
            await Task.Delay(20);
        }

        return server;
    }

    public Task<NbdClient> ConnectAsync(string exportName = "", NbdClientOptions? options = null) =>
        NbdClient.ConnectAsync(NbdUri.Unix(SocketPath, exportName), options ?? new NbdClientOptions(), CancellationToken.None);

    public void Kill() => process.Kill(entireProcessTree: true);

    public async ValueTask DisposeAsync()
    {
        if (!process.HasExited)
            process.Kill(entireProcessTree: true);
        await process.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(20));
        process.Dispose();
    }
}
