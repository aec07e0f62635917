using System.Net;
using System.Net.Sockets;

namespace Support;

/// <summary>Two ends of one connection, over real sockets: what one writes, the other reads, with the kernel's own buffering and closing.</summary>
public sealed class SocketPair : IDisposable
{
    private SocketPair(Socket left, Socket right)
    {
        LeftSocket = left;
        RightSocket = right;
        Left = new NetworkStream(left, ownsSocket: true);
        Right = new NetworkStream(right, ownsSocket: true);
    }

    public Stream Left { get; }

    public Stream Right { get; }

    public Socket LeftSocket { get; }

    public Socket RightSocket { get; }

    public static async Task<SocketPair> CreateAsync()
    {
        using Socket listener = new(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        listener.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        listener.Listen(1);
        Socket left = new(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        await left.ConnectAsync(listener.LocalEndPoint!);
        Socket right = await listener.AcceptAsync();
        right.NoDelay = true;
        return new SocketPair(left, right);
    }

    public void Dispose()
    {
        Left.Dispose();
        Right.Dispose();
    }
}
