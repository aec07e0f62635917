using System.Security.Cryptography.X509Certificates;
using Nbd;
using Platform;
using Replication;

namespace Tapdisk;

/// <summary>An export over TLS: its name is the right to use it.</summary>
internal sealed record TlsExport(Secret Name, NbdExport Export, NbdListener Listener, X509Certificate2 Certificate);

/// <summary>The parts of an open disk's data path (see the head of Disk.cs). Changed only by the verb that runs.</summary>
internal sealed class OpenDisk
{
    public OpenDisk(DiskImage image, bool isReadOnly)
    {
        Image = image;
        long lengthBytes = image.Device.LengthBytes;
        Back = new Gate(lengthBytes, isReadOnly);
        Front = new Gate(lengthBytes, isReadOnly);
        Digest = new DigestMap(lengthBytes);
        Plain = new DigestDevice(Back, Digest);
        Back.Open(image.Device);
        Front.Open(Plain);
    }

    public DiskImage Image { get; private set; }

    public Gate Front { get; }

    public Gate Back { get; }

    /// <summary>The disk without a mirror.</summary>
    public DigestDevice Plain { get; private set; }

    public DigestMap Digest { get; private set; }

    public MirrorDevice? Mirror { get; set; }

    public Secret? MirrorName { get; set; }

    /// <summary>The mirror is the field's, onto this target.</summary>
    public string? SecondaryName { get; set; }

    /// <summary>Keeps an SR's collector away from the image while there is a mirror.</summary>
    public IDisposable? Lease { get; private set; }

    public DiskSockets? Sockets { get; set; }

    public TlsExport? Export { get; set; }

    public bool IsPaused { get; set; }

    /// <summary>Whose end ends the pause; null: nobody's.</summary>
    public object? PauseHold { get; set; }

    public bool ResumeFailed { get; set; }

    /// <summary>What the guest's requests go to; a finished mirror too, as it remembers what is written after it.</summary>
    public IBlockDevice Top => Mirror is { } mirror ? mirror : Plain;

    /// <summary>
    /// After a pause, onto an image that is open; the guest is still held. Another image than before may hold something else: its digest
    /// starts anew.
    /// </summary>
    public void Reopen(DiskImage image)
    {
        if (image.Arguments != Image.Arguments && ReferenceEquals(Top, Plain))
        {
            Digest.Dispose();
            Digest = new DigestMap(image.Device.LengthBytes);
            Plain = new DigestDevice(Back, Digest);
        }

        Image = image;
        Back.Open(image.Device);
    }

    /// <summary>For a mirror that begins. Without one, when the collector does not let go, the mirror is right all the same.</summary>
    public void TakeLease(IDisposable? lease)
    {
        Lease?.Dispose();
        Lease = lease;
    }

    /// <summary>The guest goes on.</summary>
    public void EndPause()
    {
        IsPaused = false;
        PauseHold = null;
        ResumeFailed = false;
        Front.Open(Top);
    }

    public async Task EndMirrorAsync()
    {
        if (Mirror is not { } mirror)
            return;
        await mirror.DisposeAsync();
        Mirror = null;
        SecondaryName = null;
        TakeLease(null);
    }

    /// <summary>When this returns, no request of the export is in flight and none can come.</summary>
    public async Task EndExportAsync()
    {
        if (Export is not { } ending)
            return;
        Export = null;
        await ending.Export.DisposeAsync();
        await ending.Listener.DisposeAsync();
        ending.Certificate.Dispose();
    }
}
