using System.Net.Sockets;
using StorageAccess.Tap;

namespace Tapdisk;

/// <summary>
/// Connections to mirror targets that the field's daemons made and handed over on <c>nbdclient&lt;pid&gt;</c>, until a secondary asks for
/// one by its label. Ten at most; only the first 39 bytes of a label count, as in the original.
/// </summary>
internal sealed class PassedConnections : IAsyncDisposable
{
    private const int Maximum = 10;
    private const int ComparedBytes = 39;

    private readonly Lock gate = new();
    private readonly Dictionary<string, Socket> byLabel = [];
    private readonly DescriptorReceiver receiver;

    public PassedConnections(string controlDirectory, TimeProvider time) =>
        receiver = new DescriptorReceiver(
            new TapControl(controlDirectory).NbdClientSocketPath(Environment.ProcessId), Maximum, KeepAsync, time);

    /// <summary>Takes it out: a connection is used once.</summary>
    public Socket? Take(string label)
    {
        lock (gate)
            return byLabel.Remove(Compared(label), out Socket? connection) ? connection : null;
    }

    public async ValueTask DisposeAsync()
    {
        await receiver.DisposeAsync();
        foreach (Socket connection in byLabel.Values)
            connection.Dispose();
    }

    private Task KeepAsync(Socket connection, string label, CancellationToken cancellationToken)
    {
        Socket? turnedAway = null;
        lock (gate)
        {
            if (!byLabel.Remove(Compared(label), out turnedAway) && byLabel.Count == Maximum)
                turnedAway = connection;
            else
                byLabel.Add(Compared(label), connection); // The newest under a label counts.
        }

        turnedAway?.Dispose();
        Log.Write(turnedAway == connection ? $"no room for another connection ('{label}')" : $"took a connection '{label}'");
        return Task.CompletedTask;
    }

    private static string Compared(string label) => label.Length > ComparedBytes ? label[..ComparedBytes] : label;
}
