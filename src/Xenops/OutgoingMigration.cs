// The source's half of one migration of one VM: the connection, the rounds, and how far it is. Until it is stopped the guest runs and
// nothing here can hurt it; closing is free at any time.
using Xenops.Streaming;

namespace Xenops;

public enum OutgoingPhase
{
    /// <summary>Rounds until what is dirty fits into the downtime limit.</summary>
    Precopy,

    /// <summary>It fits; rounds go on so that it stays so.</summary>
    Ready,

    /// <summary>vCPUs stopped, I/O drained.</summary>
    Stopped,

    /// <summary>The stream has ended.</summary>
    Sent,
}

/// <summary>Where a destination listens. The fingerprint is that of its certificate.</summary>
public sealed record StreamTarget(string Migration, string Host, int Port, Platform.Secret Secret, string Fingerprint);

public sealed record PrecopyStats(
    string Phase, int Rounds, long PagesSent, long BytesSent, double Seconds, double BytesPerSecond,
    int DirtyPages, double EstimatedDowntimeMs, bool Converged);

public sealed record StoppedAt(string StoppedAtUtc, int InFlight);

public sealed record ImageSummary(string Digest, long Pages, long Bytes);

internal sealed class OutgoingMigration(Domain domain, StreamTarget target, TimeSpan downtimeLimit, TimeProvider time) : IAsyncDisposable
{
    private const int RoundLimit = 30;
    private static readonly TimeSpan SilenceLimit = TimeSpan.FromSeconds(30);
    private static readonly TimeSpan PumpInterval = TimeSpan.FromMilliseconds(20);

    private readonly CancellationTokenSource closing = new();
    private readonly CancellationTokenSource pumpEnding = new();
    private readonly long started = time.GetTimestamp();
    private MemorySender? sender;
    private Task converging = Task.CompletedTask;
    private Task pump = Task.CompletedTask;
    private PrecopyStats stats = new("Precopy", 0, 0, 0, 0, 0, 0, 0, false);
    private long sendingTicks;

    public string Id => target.Migration;

    public OutgoingPhase Phase { get; private set; }

    public PrecopyStats Progress => stats with { Phase = Phase.ToString() };

    public StoppedAt? Stopped { get; private set; }

    public ImageSummary? Sent { get; private set; }

    private IGuest Guest => domain.Guest!;

    /// <summary>Connects and sends rounds until the rest is small. The guest runs meanwhile, and after.</summary>
    public async Task<PrecopyStats> ConvergeAsync(CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, closing.Token);
        converging = SendUntilSmallAsync(limit.Token);
        try
        {
            await converging;
        }
        catch (OperationCanceledException)
        {
            throw XenopsException.Cancelled(target.Migration);
        }
        catch (MemoryStreamException e)
        {
            throw XenopsException.RemoteService(e.Message);
        }

        Phase = OutgoingPhase.Ready;
        pump = PumpAsync();
        return Progress;
    }

    /// <summary>Stops the vCPUs and drains the guest's I/O. When that fails the guest runs on and the stream with it.</summary>
    public async Task StopAsync(CancellationToken cancellationToken)
    {
        await pumpEnding.CancelAsync();
        await pump; // Never faults for being ended; a broken stream is an error now, while the guest still runs.
        domain.Require(DomainState.Running);
        await Domains.PauseGuestAsync(domain, Id, cancellationToken);
        Phase = OutgoingPhase.Stopped;
        Stopped = new StoppedAt(time.GetUtcNow().ToString("O"), 0);
    }

    /// <summary>Sends what is left of a stopped guest and ends the stream.</summary>
    public async Task TransferAsync(CancellationToken cancellationToken)
    {
        if (sender is null)
            throw XenopsException.RemoteService("the stream was closed; resume the VM and start the migration again");
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken, closing.Token);
        try
        {
            await SendRoundAsync(sender, limit.Token);
            ImageSent image = await sender.FinishAsync(await Guest.SaveDeviceStateAsync(limit.Token), limit.Token);
            Sent = new ImageSummary(image.Digest, image.Pages, image.Bytes);
            Phase = OutgoingPhase.Sent;
        }
        catch (MemoryStreamException e)
        {
            throw XenopsException.RemoteService(e.Message);
        }
        finally
        {
            // Half a round cannot be continued: what was taken from the dirty log is not in it any more.
            await sender.DisposeAsync();
            sender = null;
        }
    }

    /// <summary>Ends whatever the stream is doing and closes it; the guest is left as it is. Any number of times.</summary>
    public async ValueTask DisposeAsync()
    {
        await closing.CancelAsync();
        await Task.WhenAll(converging, pump).ContinueWith(static _ =>
            { }, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default);
        if (sender is not null)
            await sender.DisposeAsync();
        sender = null;
    }

    private async Task SendUntilSmallAsync(CancellationToken cancellationToken)
    {
        System.Net.Security.SslStream tls =
            await StreamTls.ConnectAsync(target.Host, target.Port, target.Fingerprint, time, cancellationToken);
        sender = new MemorySender(new FrameStream(tls, time, SilenceLimit), Guest.Memory, time);
        try
        {
            await tls.WriteAsync(new StreamHello(target.Migration, target.Secret).ToBytes(), cancellationToken);
        }
        catch (IOException e)
        {
            throw new MemoryStreamException($"the connection was lost: {e.Message}", e);
        }

        await sender.StartAsync(domain.Vm, cancellationToken);
        Guest.Memory.MarkAll();
        while (stats.Rounds < RoundLimit && !stats.Converged)
            await SendRoundAsync(sender, cancellationToken);
    }

    private async Task SendRoundAsync(MemorySender to, CancellationToken cancellationToken)
    {
        if (Guest.PanicReason is { } reason)
            throw XenopsException.Internal($"the guest of VM {domain.Vm.Id} crashed: {reason}");
        RoundSent sent = await to.SendRoundAsync(Guest.Memory.TakeDirty(), cancellationToken);
        sendingTicks += sent.Took.Ticks;
        long bytes = stats.BytesSent + sent.Bytes;
        double bytesPerSecond = bytes / Math.Max(TimeSpan.FromTicks(sendingTicks).TotalSeconds, 1e-6);
        int dirty = Guest.Memory.DirtyCount;
        double downtimeMs = dirty * (double)GuestMemory.PageSizeBytes / bytesPerSecond * 1000;
        stats = new PrecopyStats(
            "", stats.Rounds + 1, stats.PagesSent + sent.Pages, bytes, time.GetElapsedTime(started).TotalSeconds,
            bytesPerSecond, dirty, downtimeMs,
            downtimeMs <= downtimeLimit.TotalMilliseconds);
    }

    private async Task PumpAsync()
    {
        try
        {
            using CancellationTokenSource wait = CancellationTokenSource.CreateLinkedTokenSource(pumpEnding.Token, closing.Token);
            while (true)
            {
                await Task.Delay(PumpInterval, time, wait.Token);
                await SendRoundAsync(sender!, closing.Token);
            }
        }
        catch (OperationCanceledException)
        {
            // Stopped or closed.
        }
        catch (MemoryStreamException e)
        {
            throw XenopsException.RemoteService(e.Message);
        }
    }
}
