// One client's connection, from the greeting to the last reply (docs/formats/nbd.md). It has a thread of its own, which reads, and which runs
// the requests of a device that answers at once.
using System.Net.Sockets;
using Platform;

namespace Nbd;

/// <summary>What a server offers, and what one connection may cost it.</summary>
public sealed record NbdServerOptions
{
    /// <summary>The export of a name, or null to refuse it. Called on the connection's task with whatever text the client sent.</summary>
    public required Func<string, NbdExport?> Find { get; init; }

    /// <summary>The exports that LIST may name; only those with <see cref="NbdExport.IsListed"/> are.</summary>
    public Func<IEnumerable<NbdExport>> List { get; init; } = static () => [];

    /// <summary>Null: STARTTLS is not offered. Given: nothing works before it.</summary>
    public NbdTls? Tls { get; init; }

    /// <summary>No negotiation: the size is told at once, of the export with the empty name. Without TLS.</summary>
    public bool IsOldStyle { get; init; }

    /// <summary>From the greeting to the first command, however slowly the client writes.</summary>
    public TimeSpan HandshakeTimeout { get; init; } = TimeSpan.FromSeconds(10);

    /// <summary>How long a stop waits for running requests and for the client to take their answers.</summary>
    public TimeSpan DrainTimeout { get; init; } = TimeSpan.FromSeconds(5);

    public int MaxRequestsInFlight { get; init; } = 64;

    /// <summary>Payload memory of one connection; one longer request is still served, alone.</summary>
    public int MaxBytesInFlight { get; init; } = 16 * 1024 * 1024;

    public TimeProvider Time { get; init; } = TimeProvider.System;
}

/// <summary>How a connection ended, for a log.</summary>
/// <param name="IsClean">The client said goodbye (DISC, ABORT, or closed between two messages), or we were stopped.</param>
public sealed record NbdSessionEnd(bool IsClean, string Reason);

public static class NbdServer
{
    /// <summary>
    /// Serves one connection to its end. A faulty client is this method's result, not an exception. Cancelling stops it gracefully: running
    /// requests are answered within the drain timeout. No request is in flight afterwards, and the socket is closed when it was given to us.
    /// </summary>
    public static Task<NbdSessionEnd> ServeAsync(
        Socket client, NbdServerOptions options, CancellationToken cancellationToken, bool ownsSocket = true) =>
        DedicatedThread.Run(
            "NBD server",
            () =>
            {
                SocketStream stream = NbdSocket.StreamOf(client, ownsSocket);
                stream.BelongToThisThread();
                return Serve(stream, options, cancellationToken);
            });

    internal static NbdSessionEnd Serve(PeerStream client, NbdServerOptions options, CancellationToken cancellationToken)
    {
        try
        {
            using PeerStream stream = client;
            using ServerHandshake handshake = new(stream, options);
            NbdExport? export = Negotiate(handshake, options, cancellationToken);
            if (export is null)
                return new NbdSessionEnd(true, "the client left during the handshake");
            try
            {
                using ServerTransmission transmission = new(stream, handshake, export, options);
                return transmission.Run(cancellationToken);
            }
            finally
            {
                export.Leave();
            }
        }
        catch (NbdProtocolException e)
        {
            return new NbdSessionEnd(false, e.Message);
        }
        catch (Exception e) when (e is IOException or SocketException or ObjectDisposedException)
        {
            return new NbdSessionEnd(false, "the connection was lost: " + e.Message);
        }
        catch (OperationCanceledException) when (cancellationToken.IsCancellationRequested)
        {
            return new NbdSessionEnd(true, "the server was stopped");
        }
    }

    private static NbdExport? Negotiate(ServerHandshake handshake, NbdServerOptions options, CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = new(options.HandshakeTimeout, options.Time);
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(limit.Token, cancellationToken);
        using CancellationTokenRegistration cut = either.Token.Register(handshake.Abort);
        try
        {
            return handshake.Run();
        }
        catch (Exception e) when (either.IsCancellationRequested && e is IOException or ObjectDisposedException)
        {
            cancellationToken.ThrowIfCancellationRequested();
            throw new NbdProtocolException($"the handshake took longer than {options.HandshakeTimeout.TotalSeconds:0.#} s");
        }
    }
}
