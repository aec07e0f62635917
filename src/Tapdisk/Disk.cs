// One minor of a tapdisk: attached, then open, perhaps paused, closed, detached. The data path of an open disk, top down:
//
//   NbdListener (unix socket, exports) -> front Gate -> [MirrorDevice] -> DigestDevice -> back Gate -> image
//
// The front gate holds the guest, the back gate also the copy pass and digests: pausing holds both and closes the image files; a mirror
// lives on across a pause, as the content stays the same. Verbs that change a disk run one at a time; status verbs never wait for them.
using System.Net;
using System.Security.Cryptography.X509Certificates;
using Nbd;
using Platform;
using Replication;
using StorageAccess.Tap;

namespace Tapdisk;

internal sealed class Disk(int minor, string controlDirectory, PassedConnections passed, TimeProvider time) : IAsyncDisposable
{
    private const int MaximumConnections = 16;
    private const int MaximumBytesInFlight = 8 * 1024 * 1024;

    // Longer than a mirror's stall limit: a guest's write that waits for its target is inside the gate.
    private static readonly TimeSpan DrainLimit = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan StallStep = TimeSpan.FromMilliseconds(50);
    private static readonly TimeSpan FinishDrainLimit = TimeSpan.FromSeconds(5);

    private readonly SemaphoreSlim oneVerb = new(1);
    private OpenDisk? open;

    /// <summary>Of the connect to a mirror's target that is under way. Never disposed: whoever stops it may still be cancelling it.</summary>
    private CancellationTokenSource? connecting;

    public int Minor => minor;

    public string Arguments => open?.Image.Arguments ?? "";

    public TapState State => open switch
    {
        null => TapState.Running,
        { IsPaused: true } paused =>
            TapState.Paused | TapState.Quiesced | TapState.Closed | (paused.ResumeFailed ? TapState.ResumeFailed : 0),
        _ => TapState.Running,
    };

    public bool IsOpen => open is not null;

    public TapImage OpenImage => open is { } o
        ? new TapImage(o.Front.LengthBytes, o.Front.BlockSizeBytes, o.Front.IsReadOnly)
        : throw NotOpen();

    public string StatsJson => StatsText.Of(RequireOpen());

    public MirrorStatus MirrorStatus => RequireOpen() is { Mirror: { } mirror } disk
        ? mirror.Status with { Target = disk.MirrorName is { } name ? MirrorStatus.TargetId(name) : "" }
        : new MirrorStatus(MirrorPhase.None, 0, 0, 0, 0, "");

    /// <param name="secondary">A mirror's target in the field's spelling, or null.</param>
    public Task OpenAsync(string arguments, TapOpenFlags flags, string? secondary) => ChangeAsync(async () =>
    {
        if (open is not null)
            throw new TapException(TapException.Already, $"minor {minor} is open already ({Arguments})");
        bool isReadOnly = flags.HasFlag(TapOpenFlags.ReadOnly);
        OpenDisk opening = new(DiskImage.Open(arguments, isReadOnly), isReadOnly);
        try
        {
            await ApplySecondaryAsync(opening, secondary, await ReachSecondaryAsync(opening, opening.Image, secondary));
            opening.Front.Open(opening.Top);
            NbdExport export = new("", opening.Front) { IsListed = true };
            opening.Sockets = await DiskSockets.ListenAsync(
                controlDirectory,
                minor,
                new NbdServerOptions { Find = _ => export, List = () => [export], MaxBytesInFlight = MaximumBytesInFlight, Time = time });
        }
        catch
        {
            await opening.EndMirrorAsync();
            await opening.Image.Device.DisposeAsync();
            throw;
        }

        open = opening;
    });

    /// <summary>
    /// Holds the guest, finishes what is in flight, closes the image. A pause that cannot be had in time leaves the disk running.
    /// </summary>
    /// <param name="hold">Whose end ends the pause (<see cref="EndHoldAsync"/>); null for a pause that lasts until a resume. The last to ask is
    /// the one that counts, but a lasting pause stays one.</param>
    public Task PauseAsync(object? hold) => ChangeAsync(async () =>
    {
        OpenDisk disk = RequireOpen();
        if (disk.IsPaused)
        {
            disk.PauseHold = disk.PauseHold is null ? null : hold;
            return;
        }

        await HoldGuestAsync(disk);
        try
        {
            await HoldAsync(disk.Back, DrainLimit);
        }
        catch
        {
            disk.Front.Open(disk.Top);
            throw;
        }

        disk.IsPaused = true;
        disk.PauseHold = hold;
        await disk.Image.Device.FlushAsync(CancellationToken.None);
        await disk.Image.Device.DisposeAsync();
    });

    /// <param name="arguments">Empty for the same image again.</param>
    /// <param name="secondary">A mirror's target in the field's spelling; <c>null</c> as text ends the mirror; null leaves it.</param>
    public Task ResumeAsync(string arguments, string? secondary) => ChangeAsync(() => ResumeOpenAsync(arguments, secondary));

    private async Task ResumeOpenAsync(string arguments, string? secondary)
    {
        OpenDisk disk = RequireOpen();
        if (!disk.IsPaused && secondary is null)
            return;
        if (!disk.IsPaused)
            throw new TapException((int)Errno.EINVAL, $"minor {minor} is not paused; a secondary is changed with the guest held");
        disk.ResumeFailed = true;
        DiskImage image = DiskImage.Open(arguments.Length == 0 ? disk.Image.Arguments : arguments, disk.Front.IsReadOnly);
        SecondaryTarget? target;
        try
        {
            target = await ReachSecondaryAsync(disk, image, secondary);
        }
        catch
        {
            await image.Device.DisposeAsync();
            throw;
        }

        disk.Reopen(image);
        await ApplySecondaryAsync(disk, secondary, target);
        disk.EndPause();
    }

    public bool IsHeldBy(object hold) => open is { IsPaused: true } disk && ReferenceEquals(disk.PauseHold, hold);

    /// <summary>The one who asked for a pause has gone, in whatever way: the guest goes on. Nothing to do when the pause is another's by now.</summary>
    public Task EndHoldAsync(object hold) => ChangeAsync(async () =>
    {
        if (IsHeldBy(hold))
            await ResumeOpenAsync("", null);
    });

    public Task CloseAsync()
    {
        Volatile.Read(ref connecting)?.Cancel();
        return ChangeAsync(CloseOpenAsync);
    }

    /// <summary>
    /// Serves the disk over TLS under a secret name. One export at a time: a new one ends the one before, with all its requests.
    /// </summary>
    /// <returns>The port.</returns>
    public async Task<int> ExportAsync(IPEndPoint listen, string certificatePath, string keyPath, Secret name)
    {
        int port = 0;
        await ChangeAsync(async () =>
        {
            OpenDisk disk = RequireOpen();
            await disk.EndExportAsync();
            X509Certificate2 certificate = CertificateOf(certificatePath, keyPath);
            NbdExport export = new("", disk.Front);
            NbdServerOptions options = new()
            {
                Find = asked => name.Equals(new Secret(asked)) ? export : null,
                Tls = NbdTls.ForServer(certificate),
                MaxBytesInFlight = MaximumBytesInFlight,
                Time = time,
            };
            disk.Export = new TlsExport(name, export, NbdListener.ListenTcp(listen, options, MaximumConnections), certificate);
            port = ((IPEndPoint)disk.Export.Listener.EndPoint).Port;
        });
        return port;
    }

    public Task UnexportAsync(Secret name) => ChangeAsync(async () =>
    {
        if (open?.Export is { } export && export.Name.Equals(name))
            await open.EndExportAsync();
    });

    public Task MirrorStartAsync(MirrorTarget target) => ChangeAsync(async () =>
    {
        if (RequireRunning().Mirror is { Status.Phase: not MirrorPhase.Finished } mirror)
            throw new TapException((int)Errno.EBUSY, $"minor {minor} has a mirror already ({mirror.Status.Phase}); stop it first");
        await BeginMirrorAsync(target, OptionsOf(target));
    });

    private async Task BeginMirrorAsync(MirrorTarget target, MirrorOptions options)
    {
        OpenDisk disk = RequireRunning();
        NbdClient client = await ConnectAsync(target);
        IDisposable? lease = disk.Image.TakeLease();
        try
        {
            await HoldAsync(disk.Front, DrainLimit);
            try
            {
                disk.Mirror = new MirrorDevice(disk.Plain, client, options, time);
                disk.MirrorName = target.Name;
                disk.SecondaryName = null;
                disk.TakeLease(lease);
            }
            finally
            {
                disk.Front.Open(disk.Top);
            }
        }
        catch
        {
            lease?.Dispose();
            await client.DisposeAsync();
            throw;
        }
    }

    /// <summary>Without a mirror to go on with (its start never came to an end, or this process is a new one) everything is sent again.</summary>
    public Task MirrorResumeAsync(MirrorTarget target) => ChangeAsync(async () =>
    {
        OpenDisk disk = RequireOpen();
        if (disk.Mirror is not { } mirror)
        {
            await BeginMirrorAsync(target, OptionsOf(target) with { IsTargetUnknown = true });
            return;
        }

        if (target.Name.Equals(disk.MirrorName))
            throw new TapException(
                (int)Errno.EINVAL,
                "a mirror is resumed onto a new export: requests of the old one may still be on their way; nothing was changed");
        NbdClient client = await ConnectAsync(target);
        try
        {
            await mirror.ResumeAsync(client, OptionsOf(target));
            disk.MirrorName = target.Name;
            if (disk.Lease is null)
                disk.TakeLease(disk.Image.TakeLease());
        }
        catch
        {
            await client.DisposeAsync();
            throw;
        }
    });

    /// <summary>Not serialised with other verbs: it takes effect at once.</summary>
    public void SetMirrorRate(long bytesPerSecond) => RequireMirror(RequireOpen()).SetRate(bytesPerSecond);

    /// <summary>Not serialised with other verbs: one of them may be what waits for the target.</summary>
    public void GiveUpMirror() => RequireMirror(RequireOpen()).GiveUp("it was given up by order");

    /// <summary>Waits until the mirror is in another phase than the given one.</summary>
    public Task<MirrorStatus> MirrorOtherThanAsync(MirrorPhase phase, CancellationToken cancellationToken) =>
        RequireMirror(RequireOpen()).PhaseOtherThanAsync(phase, cancellationToken);

    public Task MirrorFinishAsync() => ChangeAsync(async () =>
    {
        OpenDisk disk = RequireRunning();
        MirrorDevice mirror = RequireMirror(disk);
        await HoldAsync(disk.Front, FinishDrainLimit);
        try
        {
            await mirror.FinishAsync();
            disk.TakeLease(null);
        }
        finally
        {
            disk.Front.Open(disk.Top);
        }
    });

    /// <summary>A start that is still connecting to a target that does not answer ends first.</summary>
    public Task MirrorStopAsync()
    {
        Volatile.Read(ref connecting)?.Cancel();
        return ChangeAsync(async () =>
        {
            if (RequireOpen() is { Mirror: not null } disk)
            {
                await disk.EndMirrorAsync();
                if (!disk.IsPaused)
                    disk.Front.Open(disk.Top); // No need to drain: what is still inside goes to the source alone.
            }
        });
    }

    /// <summary>Reads what it must; other verbs go on meanwhile.</summary>
    public async Task<DiskDigest> DigestAsync(CancellationToken cancellationToken)
    {
        OpenDisk disk = RequireRunning();
        DigestResult result = await disk.Digest.ComputeAsync(disk.Plain, cancellationToken);
        return new DiskDigest(result.Root, disk.Plain.LengthBytes, DigestMap.BlockBytes, result.RehashedBlocks);
    }

    /// <summary>As <see cref="DigestAsync"/>, of a part.</summary>
    public async Task<string> DigestRangeAsync(long offsetBytes, long lengthBytes, CancellationToken cancellationToken)
    {
        OpenDisk disk = RequireRunning();
        try
        {
            return await disk.Digest.RangeAsync(disk.Plain, offsetBytes, lengthBytes, cancellationToken);
        }
        catch (ArgumentOutOfRangeException e)
        {
            throw new TapException((int)Errno.EINVAL, $"{e.Message}; nothing was read", e);
        }
    }

    public async ValueTask DisposeAsync()
    {
        await CloseAsync();
        oneVerb.Dispose();
    }

    private async Task CloseOpenAsync()
    {
        if (open is not { } disk)
            return;
        if (disk.IsPaused)
            disk.Front.Shut(); // Who waits there would keep the listener from ending.
        await disk.EndMirrorAsync();
        if (disk.Sockets is { } sockets)
            await sockets.DisposeAsync();
        await disk.EndExportAsync();
        disk.Front.Shut();
        disk.Back.Shut();
        open = null;
        disk.Digest.Dispose();
        if (disk.IsPaused)
            return;
        try
        {
            await disk.Image.Device.FlushAsync(CancellationToken.None);
        }
        finally
        {
            await disk.Image.Device.DisposeAsync();
        }
    }

    /// <summary>Whatever can be refused is refused here, before anything changes.</summary>
    private async Task<SecondaryTarget?> ReachSecondaryAsync(OpenDisk disk, DiskImage image, string? secondary)
    {
        bool endsMirror = secondary == SecondaryTarget.None;
        if (disk.Mirror is not null && !endsMirror && image.Device.LengthBytes != disk.Back.LengthBytes)
            throw new TapException((int)Errno.EINVAL, "the image's size changed under a mirror; the disk stays paused");
        if (secondary is null || endsMirror)
            return null;
        if (disk.Mirror is { Status.Phase: not MirrorPhase.Finished } && disk.SecondaryName is null)
            throw new TapException((int)Errno.EBUSY, $"minor {minor} has a mirror of mirror-start; it stays paused");
        return await SecondaryTarget.ReachAsync(secondary, passed, image.Device.LengthBytes);
    }

    private Task ApplySecondaryAsync(OpenDisk disk, string? secondary, SecondaryTarget? target) =>
        target is not null ? target.ApplyAsync(disk, time)
        : secondary == SecondaryTarget.None ? disk.EndMirrorAsync()
        : Task.CompletedTask;

    private async Task ChangeAsync(Func<Task> change)
    {
        await oneVerb.WaitAsync();
        try
        {
            await change();
        }
        finally
        {
            oneVerb.Release();
        }
    }

    // A mirror's target that does not answer must not keep a disk from being paused: it is left behind, and can be caught up later.
    private async Task HoldGuestAsync(OpenDisk disk)
    {
        Task holding = HoldAsync(disk.Front, DrainLimit);
        while (disk.Mirror is { } mirror && !holding.IsCompleted)
        {
            if (mirror.Status.Phase == MirrorPhase.Stalled)
                mirror.GiveUp("the disk was to be paused while the target did not answer");
            await Task.WhenAny(holding, Task.Delay(StallStep, time));
        }

        await holding;
    }

    private async Task HoldAsync(Gate gate, TimeSpan limit)
    {
        try
        {
            await gate.HoldAsync(limit);
        }
        catch (TimeoutException)
        {
            throw new TapException(
                (int)Errno.ETIMEDOUT,
                $"minor {minor} still has {gate.InFlight} requests after {limit.TotalSeconds:0} s; it goes on as before");
        }
    }

    private static MirrorOptions OptionsOf(MirrorTarget target) => new(target.StallLimit, target.RateLimitBytesPerSecond);

    private async Task<NbdClient> ConnectAsync(MirrorTarget target)
    {
        CancellationTokenSource mine = new();
        Volatile.Write(ref connecting, mine);
        try
        {
            return await ConnectAsync(target, mine.Token);
        }
        catch (OperationCanceledException e)
        {
            throw new TapException(TapException.Interrupted, "the mirror was stopped while it was connecting to its target", e);
        }
        finally
        {
            Volatile.Write(ref connecting, null);
        }
    }

    private static async Task<NbdClient> ConnectAsync(MirrorTarget target, CancellationToken cancellationToken)
    {
        NbdUri at = NbdUri.TryParse(target.Uri) ?? throw new TapException((int)Errno.EINVAL, $"'{target.Uri}' is not an NBD address");
        if (at is { SocketPath: not null, IsTls: false })
            return await NbdClient.ConnectAsync(at, new NbdClientOptions { MaxRequestsInFlight = 128 }, cancellationToken);
        if (at.Host is null || !at.IsTls)
            throw new TapException((int)Errno.EINVAL, $"a mirror's target is nbds://host:port or a socket of this machine, not '{target.Uri}'");
        NbdClientOptions options = new() { Tls = NbdTls.ForClient(target.Fingerprint), MaxRequestsInFlight = 128 };
        NbdUri export = NbdUri.Tcp(at.Host, at.Port, target.Name.Reveal(), isTls: true);
        return await NbdClient.ConnectAsync(export, options, cancellationToken);
    }

    private static X509Certificate2 CertificateOf(string certificatePath, string keyPath)
    {
        try
        {
            return X509Certificate2.CreateFromPemFile(certificatePath, keyPath);
        }
        catch (Exception e) when (e is System.Security.Cryptography.CryptographicException or UnauthorizedAccessException)
        {
            throw new TapException((int)Errno.EINVAL, $"{certificatePath} and {keyPath} are no certificate with its key: {e.Message}", e);
        }
    }

    private OpenDisk RequireOpen() => open ?? throw NotOpen();

    private OpenDisk RequireRunning() => RequireOpen() is { IsPaused: false } running
        ? running
        : throw new TapException((int)Errno.EBUSY, $"minor {minor} is paused; nothing was changed");

    private MirrorDevice RequireMirror(OpenDisk disk) =>
        disk.Mirror ?? throw new TapException((int)Errno.ENOENT, $"minor {minor} has no mirror");

    private TapException NotOpen() => new(TapException.NoSuchDevice, $"minor {minor} has no open image");
}
