using System.Net.Sockets;

namespace Platform;

/// <summary>The file of a unix socket that a daemon listens on.</summary>
public static class SocketFile
{
    /// <summary>Removes a socket file on which nobody answers: what a killed daemon left.</summary>
    /// <exception cref="IOException">Somebody answers; the file was left as it is.</exception>
    public static void RemoveStale(string path)
    {
        if (!File.Exists(path))
            return;
        using Socket probe = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            probe.Connect(new UnixDomainSocketEndPoint(path));
        }
        catch (SocketException)
        {
            File.Delete(path);
            return;
        }

        throw new IOException($"another daemon answers on {path}; give this one a folder of its own");
    }
}
