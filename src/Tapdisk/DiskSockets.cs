// The sockets of one open disk, by the field's names (research: storage.md 6.5): two that one connects to, and two on which a connected
// client is handed over.
using System.Net.Sockets;
using Nbd;
using StorageAccess.Tap;

namespace Tapdisk;

internal sealed class DiskSockets : IAsyncDisposable
{
    private const int MaximumConnections = 16;

    /// <summary>A client that said goodbye on a connection that was handed over may come back on it: it pauses. So long it may.</summary>
    private static readonly TimeSpan ReturnLimit = TimeSpan.FromMinutes(10);

    private static readonly TimeSpan CutLimit = TimeSpan.FromSeconds(10);

    private readonly List<IAsyncDisposable> parts = [];

    /// <exception cref="IOException">One of the names cannot be had; none is left behind.</exception>
    public static async Task<DiskSockets> ListenAsync(string controlDirectory, int minor, NbdServerOptions options)
    {
        TapControl names = new(controlDirectory);
        int processId = Environment.ProcessId;
        DiskSockets sockets = new();
        try
        {
            foreach (string path in (string[])[names.NbdSocketPath(processId, minor), names.OldNbdSocketPath(processId, minor)])
                sockets.parts.Add(NbdListener.ListenUnix(path, options, MaximumConnections));
            sockets.parts.Add(Receiver(names.PassingSocketPath(processId, minor, isNewStyle: true), options));
            sockets.parts.Add(Receiver(
                names.PassingSocketPath(processId, minor, isNewStyle: false), options with { IsOldStyle = true }));
            return sockets;
        }
        catch
        {
            await sockets.DisposeAsync();
            throw;
        }
    }

    public async ValueTask DisposeAsync()
    {
        foreach (IAsyncDisposable part in parts)
            await part.DisposeAsync();
    }

    private static DescriptorReceiver Receiver(string path, NbdServerOptions options) =>
        new(path, MaximumConnections, (connection, _, stop) => ServeAsync(connection, options, stop), options.Time);

    // The field's client cannot connect again by itself: after DISC it expects the next greeting on the same connection.
    private static async Task ServeAsync(Socket connection, NbdServerOptions options, CancellationToken stop)
    {
        using Socket owned = connection;
        using CancellationTokenSource cut = new();
        using CancellationTokenRegistration onStop = stop.Register(() => cut.CancelAfter(CutLimit));
        using CancellationTokenRegistration onCut = cut.Token.Register(connection.Dispose);
        NbdSessionEnd end;
        do
        {
            end = await NbdServer.ServeAsync(connection, options, stop, ownsSocket: false);
            options = options with { HandshakeTimeout = ReturnLimit };
        }
        while (end.IsClean && !stop.IsCancellationRequested);
    }
}
