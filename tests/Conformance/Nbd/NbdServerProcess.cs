using System.Diagnostics;
using System.Net.Sockets;
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
        // nbdkit in the foreground ends when the THREAD that started it does (PR_SET_PDEATHSIG), and ours come from a pool: a shell stays between.
        ProcessStartInfo start = new("/bin/sh") { UseShellExecute = false, RedirectStandardInput = true };
        start.ArgumentList.Add("-c");
        start.ArgumentList.Add("\"$@\"; exit $?");
        start.ArgumentList.Add("sh");
        start.ArgumentList.Add(program);
        foreach (string argument in arguments)
            start.ArgumentList.Add(argument);
        NbdServerProcess server = new(Process.Start(start)!, socketPath);
        DateTime deadline = DateTime.UtcNow.AddSeconds(20);
        while (!Answers(socketPath))
        {
            Assert.False(server.process.HasExited || DateTime.UtcNow > deadline, $"{program} did not start to listen");
            await Task.Delay(20);
        }

        return server;
    }

    public Task<NbdClient> ConnectAsync(string exportName = "", NbdClientOptions? options = null) =>
        NbdClient.ConnectAsync(NbdUri.Unix(SocketPath, exportName), options ?? new NbdClientOptions(), CancellationToken.None);

    // The file is there before the server listens.
    private static bool Answers(string socketPath)
    {
        using Socket probe = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            probe.Connect(new UnixDomainSocketEndPoint(socketPath));
            return true;
        }
        catch (SocketException)
        {
            return false;
        }
    }

    public void Kill() => process.Kill(entireProcessTree: true);

    public async ValueTask DisposeAsync()
    {
        if (!process.HasExited)
            process.Kill(entireProcessTree: true);
        await process.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(20));
        process.Dispose();
    }
}
