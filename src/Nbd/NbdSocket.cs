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
}
