// One request on one connection of a control socket: the record in a single write (the original server mis-adds partial reads), then the
// answer.
using System.Net.Sockets;
using System.Security.Cryptography;

namespace StorageAccess.Tap;

/// <summary>A connection to <c>ctl&lt;pid&gt;</c>. Every wait ends with the token that the owner arms with a deadline.</summary>
internal sealed class TapConnection : IDisposable
{
    private readonly Socket socket;

    private TapConnection(Socket socket) => this.socket = socket;

    /// <exception cref="TapException">ESRCH: nobody listens.</exception>
    public static async Task<TapConnection> OpenAsync(string path, CancellationToken cancellationToken)
    {
        while (true)
        {
            Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            try
            {
                await socket.ConnectAsync(new UnixDomainSocketEndPoint(path), cancellationToken);
                return new TapConnection(socket);
            }
            catch (SocketException e) when (
                e.SocketErrorCode is SocketError.WouldBlock or SocketError.TryAgain or SocketError.NoBufferSpaceAvailable)
            {
                socket.Dispose(); // The server's backlog is full: it takes ten at a time.
                await Task.Delay(20, cancellationToken);
            }
            catch (SocketException e)
            {
                socket.Dispose();
                throw new TapException(TapException.NoSuchProcess, $"no tapdisk listens on {path} ({e.Message})", e);
            }
            catch
            {
                socket.Dispose();
                throw;
            }
        }
    }

    /// <summary>Sends the record and what follows it in one write.</summary>
    public async Task SendAsync(TapMessage message, ReadOnlyMemory<byte> following, CancellationToken cancellationToken)
    {
        byte[] whole = [.. message.Bytes.Span, .. following.Span];
        try
        {
            for (int sent = 0; sent < whole.Length;)
                sent += await socket.SendAsync(whole.AsMemory(sent), SocketFlags.None, cancellationToken);
        }
        finally
        {
            CryptographicOperations.ZeroMemory(whole); // What follows may be a key.
        }
    }

    public async Task<TapMessage> ReceiveAsync(CancellationToken cancellationToken) =>
        TapMessage.Decode(await ReceiveBytesAsync(TapMessage.SizeBytes, cancellationToken));

    /// <exception cref="TapException">EPROTO: the peer closed before all of it, or wants to send more than the limit.</exception>
    public async Task<byte[]> ReceiveBytesAsync(long count, CancellationToken cancellationToken)
    {
        if (count is < 0 or > TapControl.MaximumFollowingBytes)
        {
            throw new TapException(
                TapException.ProtocolError, $"the tapdisk wants to send {count} bytes; the limit is {TapControl.MaximumFollowingBytes}");
        }

        byte[] bytes = new byte[count];
        for (int got = 0; got < bytes.Length;)
        {
            int read = await socket.ReceiveAsync(bytes.AsMemory(got), SocketFlags.None, cancellationToken);
            if (read == 0)
                throw new TapException(TapException.ProtocolError, $"the tapdisk closed the connection after {got} of {count} bytes");
            got += read;
        }

        return bytes;
    }

    public void Dispose() => socket.Dispose();
}
