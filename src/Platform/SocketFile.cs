using System.Net.Sockets;

namespace Platform;

/// <summary>The file of a unix socket that a daemon listens on.</summary>
public static class SocketFile
{
    /// <summary>Listens, for nobody but the owner of the file.</summary>
    /// <exception cref="IOException">The path is too long, taken, or not ours to create.</exception>
    public static Socket Listen(string path, int backlog)
    {
        Socket listener = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            listener.Bind(new UnixDomainSocketEndPoint(path));
            File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite);
            listener.Listen(backlog);
            return listener;
        }
        catch (Exception e) when (e is SocketException or ArgumentException)
        {
            listener.Dispose();
            throw new IOException($"cannot listen on {path}: {e.Message}", e);
        }
    }

    /// <summary>A connection to whoever listens there.</summary>
    /// <exception cref="SocketException">Nobody does.</exception>
    public static async ValueTask<Stream> ConnectAsync(string path, CancellationToken cancellationToken)
    {
        Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            await socket.ConnectAsync(new UnixDomainSocketEndPoint(path), cancellationToken);
            return new NetworkStream(socket, ownsSocket: true);
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    /// <summary>Removes a socket file on which nobody answers: what a killed daemon left.</summary>
    /// <exception cref="IOException">Somebody answers, or it is no socket; the file was left as it is.</exception>
    public static void RemoveStale(string path)
    {
        if (!Path.Exists(path))
            return;
        if (!Posix.IsSocket(path)) // Connecting to a plain file is "refused" too: without this it would be deleted.
            throw new IOException($"{path} exists and is not a socket; it was left as it is");
        using Socket probe = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            probe.Connect(new UnixDomainSocketEndPoint(path));
        }
        catch (SocketException e) when (e.SocketErrorCode == SocketError.ConnectionRefused)
        {
            File.Delete(path);
            return;
        }
        catch (Exception e) when (e is SocketException or ArgumentException)
        {
            throw new IOException($"{path} exists and cannot be replaced: {e.Message}", e);
        }

        throw new IOException($"another daemon answers on {path}; give this one a place of its own");
    }
}
