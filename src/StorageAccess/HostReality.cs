// What is really so on this machine, asked of the kernel and not of our records: which boot this is, whether somebody answers where an
// attach said that the disk is served, and who that is.
using System.Buffers.Binary;
using System.Globalization;
using System.Net.Sockets;
using Platform;

namespace StorageAccess;

/// <summary>What the layer compares its records with after a restart, and names in a refusal.</summary>
public interface IHostReality
{
    /// <summary>The host's name, for people.</summary>
    string HostName { get; }

    /// <summary>Another one after each start of the machine.</summary>
    string BootId { get; }

    /// <summary>False only when nobody serves the disk for certain; an answer without a place that can be asked counts as served.</summary>
    bool IsServed(Backend backend);

    /// <summary>The process that serves it, as <c>tapdisk[1234]</c>; null when nobody can tell.</summary>
    string? ServerOf(Backend backend);
}

/// <param name="hostName">What refusals call this host.</param>
public sealed class HostReality(string hostName) : IHostReality
{
    private const int SocketLevel = 1; // SOL_SOCKET
    private const int PeerCredentials = 17; // SO_PEERCRED: pid, uid, gid.
    private const int CredentialsBytes = 12;

    public string HostName => hostName;

    public string BootId { get; } = File.ReadAllText("/proc/sys/kernel/random/boot_id").Trim();

    public bool IsServed(Backend backend)
    {
        if (backend.Nbd is not { } nbd || SocketPathOf(nbd.Uri) is null)
            return true;
        using Socket? socket = Connect(nbd);
        return socket is not null;
    }

    public string? ServerOf(Backend backend)
    {
        using Socket? socket = backend.Nbd is { } nbd ? Connect(nbd) : null;
        return socket is { Connected: true } ? NameOfPeer(socket) : null;
    }

    /// <summary>Null when nobody listens there; not connected when somebody does and is too busy.</summary>
    private static Socket? Connect(NbdImplementation nbd)
    {
        if (SocketPathOf(nbd.Uri) is not { } path)
            return null;
        Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) { Blocking = false };
        try
        {
            // A link that names two uuids is longer than an address may be; its target is not.
            socket.Connect(new UnixDomainSocketEndPoint(File.ResolveLinkTarget(path, returnFinalTarget: true)?.FullName ?? path));
            return socket;
        }
        catch (SocketException e) when (e.SocketErrorCode == SocketError.WouldBlock)
        {
            return socket;
        }
        catch (Exception e) when (e is SocketException or IOException or ArgumentException)
        {
            socket.Dispose();
            return null;
        }
    }

    private static string NameOfPeer(Socket socket)
    {
        byte[] credentials = new byte[CredentialsBytes];
        socket.GetRawSocketOption(SocketLevel, PeerCredentials, credentials);
        int processId = BinaryPrimitives.ReadInt32LittleEndian(credentials);
        return string.Create(CultureInfo.InvariantCulture, $"{ProcessTable.NameOf(processId)}[{processId}]");
    }

    /// <summary><c>nbd:unix:SOCKET:exportname=NAME</c>, the field's spelling; null for anything else.</summary>
    internal static string? SocketPathOf(string uri)
    {
        string[] parts = uri.Split(':');
        return parts is ["nbd", "unix", { Length: > 0 } path, _] ? path : null;
    }
}
