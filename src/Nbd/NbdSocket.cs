using System.Net;
using System.Net.Sockets;
using Platform;

namespace Nbd;

/// <summary>The sockets of both ends: small messages leave at once, and a peer that lost its power is noticed.</summary>
internal static class NbdSocket
{
    private const int KeepAliveSeconds = 30;

    public static Socket Create(EndPoint endPoint) => endPoint.AddressFamily == AddressFamily.Unix
        ? new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified)
        : new Socket(endPoint.AddressFamily, SocketType.Stream, ProtocolType.Tcp);

    public static SocketStream StreamOf(Socket connected, bool ownsSocket = true)
    {
        if (connected.AddressFamily != AddressFamily.Unix)
        {
            connected.NoDelay = true;
            connected.SetSocketOption(SocketOptionLevel.Socket, SocketOptionName.KeepAlive, true);
            connected.SetSocketOption(SocketOptionLevel.Tcp, SocketOptionName.TcpKeepAliveTime, KeepAliveSeconds);
            connected.SetSocketOption(SocketOptionLevel.Tcp, SocketOptionName.TcpKeepAliveInterval, KeepAliveSeconds / 3);
        }

        return new SocketStream(connected, ownsSocket);
    }

    /// <summary>A socket, and what connects it: on a thread that may wait.</summary>
    /// <exception cref="BlockIoException">EACCES: it demands TLS and there is nothing to check the server by. ESHUTDOWN: no such
    /// address.</exception>
    public static (Socket Socket, Action Connect) Prepare(NbdUri uri, NbdClientOptions options)
    {
        if (uri.IsTls && options.Tls is null)
            throw new BlockIoException(
                Errno.EACCES, "the URI demands TLS, but no certificate fingerprint was given to check the server by");
        if (uri.SocketPath is not { } path)
        {
            Socket socket = new(SocketType.Stream, ProtocolType.Tcp);
            return (socket, () => socket.Connect(uri.Host!, uri.Port));
        }

        try
        {
            // A socket's address holds 108 bytes; a stable name (a link with two uuids in it) may be longer than what it points to.
            UnixDomainSocketEndPoint endPoint = new(File.ResolveLinkTarget(path, returnFinalTarget: true)?.FullName ?? path);
            Socket unix = Create(endPoint);
            return (unix, () => unix.Connect(endPoint));
        }
        catch (Exception e) when (e is ArgumentException or IOException)
        {
            throw Unreachable(uri, e);
        }
    }

    public static BlockIoException Unreachable(NbdUri uri, Exception e) =>
        new(Errno.ESHUTDOWN, $"no NBD server at {uri.SocketPath ?? $"{uri.Host}:{uri.Port}"}: {e.Message}", e);
}
