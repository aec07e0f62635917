// The control socket of this process: one request per connection, ten connections at a time, two seconds to say what one wants
// (research: storage.md 6.3). Every request is answered; an error carries its errno and a sentence.
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json.Nodes;
using Platform;
using StorageAccess.Tap;

namespace Tapdisk;

internal sealed class ControlServer : IAsyncDisposable
{
    // The original serves ten; ours also has digests under way for minutes.
    private const int MaximumConnections = 32;
    private static readonly TimeSpan ReadLimit = TimeSpan.FromSeconds(2);
    private static readonly TimeSpan WriteLimit = TimeSpan.FromSeconds(10);
    private static readonly TimeSpan StopLimit = TimeSpan.FromSeconds(35);

    private readonly string path;
    private readonly DiskTable disks;
    private readonly Socket listener;
    private readonly CancellationTokenSource stop = new();
    private readonly SemaphoreSlim connections = new(MaximumConnections);
    private readonly Task accepting;

    /// <summary>Listens; only the owner may connect.</summary>
    public ControlServer(string controlDirectory, DiskTable disks)
    {
        this.disks = disks;
        path = new TapControl(controlDirectory).ControlSocketPath(Environment.ProcessId);
        File.Delete(path); // A dead process had our id.
        listener = SocketFile.Listen(path, MaximumConnections);
        accepting = AcceptAsync();
    }

    public async ValueTask DisposeAsync()
    {
        await stop.CancelAsync();
        await accepting;
        listener.Dispose();
        File.Delete(path);
        using CancellationTokenSource limit = new(StopLimit);
        try
        {
            for (int i = 0; i < MaximumConnections; i++)
                await connections.WaitAsync(limit.Token);
        }
        catch (OperationCanceledException)
        {
            Log.Write("a control request did not end; the process ends without it");
        }

        stop.Dispose();
        connections.Dispose();
    }

    private async Task AcceptAsync()
    {
        while (true)
        {
            try
            {
                await connections.WaitAsync(stop.Token);
                Socket client = await listener.AcceptAsync(stop.Token);
                _ = ServeAsync(client); // Owned by the semaphore: DisposeAsync waits for all its seats.
            }
            catch (OperationCanceledException)
            {
                connections.Release();
                return;
            }
            catch (SocketException e)
            {
                Log.Write($"accept on the control socket failed: {e.Message}");
                connections.Release();
            }
        }
    }

    private async Task ServeAsync(Socket client)
    {
        await Task.Yield();
        try
        {
            using NetworkStream stream = new(client, ownsSocket: true);
            TapMessage request = TapMessage.Decode(await ReadAsync(stream, TapMessage.SizeBytes));
            try
            {
                await AnswerAsync(stream, request);
                if (request.Type == TapMessageType.Detach)
                    disks.EndWhenEmpty();
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException or OperationCanceledException)
            {
                Log.Write($"{request.Type} of minor {request.Minor} refused: {e.Message}");
                await WriteAsync(stream, new TapMessage(TapMessageType.Error, request.Minor) { Error = ErrnoOf(e), ErrorText = e.Message });
            }
        }
        catch (Exception e) when (e is IOException or OperationCanceledException)
        {
            Log.Write($"a control connection broke: {e.Message}");
        }
        catch (Exception e)
        {
            // Our own bug: the guest's data is safer with a process that ends than with one that guesses.
            Environment.FailFast($"tapdisk: {e.Message}", e);
        }
        finally
        {
            connections.Release();
        }
    }

    private async Task AnswerAsync(NetworkStream stream, TapMessage request)
    {
        Log.Write($"{request.Type} minor {request.Minor} {request.Path}".TrimEnd());
        switch (request.Type)
        {
            case TapMessageType.Pid:
                await WriteAsync(stream, new TapMessage(TapMessageType.PidResponse, request.Minor) { ProcessId = Environment.ProcessId });
                break;
            case TapMessageType.List:
                await ListAsync(stream, request);
                break;
            case TapMessageType.Stats:
                byte[] stats = Encoding.UTF8.GetBytes(disks.Find(request.Minor).StatsJson);
                await WriteAsync(
                    stream, new TapMessage(TapMessageType.StatsResponse, request.Minor) { FollowingBytes = (ulong)stats.Length }, stats);
                break;
            case TapMessageType.DiskInfo:
                await WriteAsync(stream, ImageOf(TapMessageType.DiskInfoResponse, disks.Find(request.Minor)));
                break;
            case TapMessageType.Extension:
                await ExtensionAsync(stream, request);
                break;
            default:
                await SkipFollowingAsync(stream, request);
                await WriteAsync(stream, await ChangeAsync(request));
                break;
        }
    }

    // The log's path and the key, which belong to what is refused next. A client that is not read to the end may not read its answer.
    private static async Task SkipFollowingAsync(NetworkStream stream, TapMessage request)
    {
        if (request.Type is not (TapMessageType.Open or TapMessageType.Resume))
            return;
        if (request.Flags.HasFlag(TapOpenFlags.AddLog))
            _ = await ReadAsync(stream, TapMessage.MaximumTextBytes + 1);
        if (request.Flags.HasFlag(TapOpenFlags.Encrypted))
            CryptographicOperations.ZeroMemory(await ReadAsync(stream, (await ReadAsync(stream, 1))[0]));
    }

    private async Task<TapMessage> ChangeAsync(TapMessage request)
    {
        int minor = request.Minor;
        switch (request.Type)
        {
            case TapMessageType.Attach:
                disks.Attach(minor);
                return new TapMessage(TapMessageType.AttachResponse, minor);
            case TapMessageType.Open:
                RefuseWhatWeLack(request);
                if (request.Flags.HasFlag(TapOpenFlags.ReuseParent))
                    await disks.RequireParentAsync(request.Path, request.ParentDeviceNumber, stop.Token);
                await disks.Find(minor).OpenAsync(request.Path, request.Flags, SecondaryOf(request));
                return ImageOf(TapMessageType.OpenResponse, disks.Find(minor));
            case TapMessageType.Pause:
                await disks.Find(minor).PauseAsync(hold: null);
                return new TapMessage(TapMessageType.PauseResponse, minor);
            case TapMessageType.Resume:
                RefuseWhatWeLack(request);
                await disks.Find(minor).ResumeAsync(request.Path, SecondaryOf(request));
                return new TapMessage(TapMessageType.ResumeResponse, minor);
            case TapMessageType.Close:
            case TapMessageType.ForceShutdown:
                await disks.Find(minor).CloseAsync();
                return new TapMessage(TapMessageType.CloseResponse, minor);
            case TapMessageType.Detach:
                await disks.DetachAsync(minor);
                return new TapMessage(TapMessageType.DetachResponse, minor);
            default:
                throw new TapException((int)Errno.EINVAL, $"message type {(int)request.Type} is not served");
        }
    }

    private static string? SecondaryOf(TapMessage request) =>
        request.Flags.HasFlag(TapOpenFlags.Secondary) ? request.Secondary : null;

    private static void RefuseWhatWeLack(TapMessage request)
    {
        TapOpenFlags refused = request.Flags & (TapOpenFlags.Encrypted | TapOpenFlags.AddLog | TapOpenFlags.Standby);
        if (refused != 0)
            throw new TapException((int)Errno.ENOTSUP, $"{refused} is not served; nothing was changed");
    }

    private async Task ListAsync(NetworkStream stream, TapMessage request)
    {
        foreach (Disk disk in disks.All.Where(disk => request.Minor is -1 || disk.Minor == request.Minor))
        {
            await WriteAsync(stream, new TapMessage(TapMessageType.ListResponse, request.Minor)
            {
                ListCount = 1,
                ListMinor = disk.Minor,
                ListState = disk.State,
                Path = disk.Arguments,
            });
        }

        await WriteAsync(stream, new TapMessage(TapMessageType.ListResponse, request.Minor) { ListMinor = -1 });
    }

    private async Task ExtensionAsync(NetworkStream stream, TapMessage request)
    {
        if (request.FollowingBytes > TapControl.MaximumFollowingBytes)
        {
            throw new TapException(
                (int)Errno.EINVAL, $"a request of {request.FollowingBytes} bytes is longer than {TapControl.MaximumFollowingBytes}");
        }

        byte[] json = await ReadAsync(stream, (int)request.FollowingBytes);
        using CancellationTokenSource gone = CancellationTokenSource.CreateLinkedTokenSource(stop.Token);
        Task watching = CancelWhenClosedAsync(stream, gone);
        object hold = new();
        try
        {
            JsonObject answer;
            try
            {
                answer = await ExtensionVerbs.RunAsync(disks, json, hold, gone.Token);
            }
            finally
            {
                await gone.CancelAsync();
                await watching;
            }

            byte[] bytes = Encoding.UTF8.GetBytes(answer.ToJsonString());
            await WriteAsync(
                stream, new TapMessage(TapMessageType.ExtensionResponse, request.Minor) { FollowingBytes = (ulong)bytes.Length }, bytes);
            if (disks.All.Any(disk => disk.IsHeldBy(hold)))
                _ = await stream.ReadAsync(new byte[1], stop.Token); // Whatever comes, or nothing any more: the asker is done.
        }
        finally
        {
            await EndHoldAsync(hold);
        }
    }

    /// <summary>A process that ends closes its disks itself.</summary>
    private async Task EndHoldAsync(object hold)
    {
        foreach (Disk disk in disks.All.Where(disk => disk.IsHeldBy(hold) && !stop.IsCancellationRequested))
        {
            Log.Write($"who had minor {disk.Minor} paused is gone; the guest goes on");
            try
            {
                await disk.EndHoldAsync(hold);
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
            {
                Log.Write($"minor {disk.Minor} stays paused: {e.Message}");
            }
        }
    }

    // A client that leaves ends the digest that it asked for; other verbs finish what they began.
    private static async Task CancelWhenClosedAsync(NetworkStream stream, CancellationTokenSource gone)
    {
        try
        {
            _ = await stream.ReadAsync(new byte[1], gone.Token);
            await gone.CancelAsync();
        }
        catch (Exception e) when (e is IOException or OperationCanceledException or ObjectDisposedException)
        {
            // Answered first, or broken: the write of the answer will tell.
        }
    }

    private static TapMessage ImageOf(TapMessageType type, Disk disk)
    {
        TapImage image = disk.OpenImage;
        return new TapMessage(type, disk.Minor)
        {
            Sectors = (ulong)(image.LengthBytes / image.SectorSizeBytes),
            SectorSizeBytes = (uint)image.SectorSizeBytes,
            ImageInfo = image.IsReadOnly ? 2u : 0u,
        };
    }

    private static int ErrnoOf(Exception exception) => exception switch
    {
        TapException tap => tap.ErrnoNumber,
        Vhd.VhdException { Error: Vhd.VhdError.CannotOpen or Vhd.VhdError.ParentMissing } => (int)Errno.ENOENT,
        Vhd.VhdException => (int)Errno.EINVAL,
        IOException io => (int)BlockIoException.ErrnoOf(io),
        UnauthorizedAccessException => (int)Errno.EACCES,
        OperationCanceledException => TapException.Interrupted,
        _ => (int)Errno.EINVAL,
    };

    private static async Task<byte[]> ReadAsync(NetworkStream stream, int count)
    {
        using CancellationTokenSource limit = new(ReadLimit);
        byte[] bytes = new byte[count];
        await stream.ReadExactlyAsync(bytes, limit.Token);
        return bytes;
    }

    private static async Task WriteAsync(NetworkStream stream, TapMessage message, ReadOnlyMemory<byte> following = default)
    {
        using CancellationTokenSource limit = new(WriteLimit);
        byte[] whole = [.. message.Bytes.Span, .. following.Span];
        await stream.WriteAsync(whole, limit.Token);
    }
}
