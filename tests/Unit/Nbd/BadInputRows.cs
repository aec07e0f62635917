// Rows 69 to 97 of the bad-input plan (research/users-and-trust.md 5.4): those that are not in the tests of one end are here, and every
// number must have a test. A test says its rows in its name (Row_95_…) or at the head of its data ("88 overlap").
using System.Globalization;
using System.Net.Sockets;
using System.Reflection;
using System.Text.RegularExpressions;
using Nbd;
using Platform;
using Replication;
using StorageAccess.Tap;
using Support;
using static Unit.NbdTests.RawPeer;

namespace Unit.NbdTests;

[Collection("measures memory")]
public sealed partial class BadInputRows : IDisposable
{
    private const int First = 69;
    private const int Last = 97;
    private readonly TemporaryDirectory folder = new();

    public void Dispose() => folder.Dispose();

    [Fact]
    public void Every_row_has_a_test()
    {
        IEnumerable<MethodInfo> tests = typeof(BadInputRows).Assembly.GetTypes()
            .Where(static type => type.Namespace == typeof(BadInputRows).Namespace)
            .SelectMany(static type => type.GetMethods())
            .Where(static method => method.GetCustomAttribute<FactAttribute>() is not null); // A theory is one too.
        HashSet<int> rows = [.. tests.SelectMany(RowsOf)];
        Assert.Empty(Enumerable.Range(First, Last - First + 1).Except(rows));
    }

    [Fact]
    public async Task Row_92_ten_thousand_idle_connections_are_bounded_and_the_service_goes_on()
    {
        const int asked = 10_000;
        const int served = 512;
        string path = folder.File("s.sock");
        NbdExport export = new("disk", new MemoryBlockDevice(4096));
        NbdServerOptions options = ServedPeer.OptionsFor(export) with { HandshakeTimeout = TimeSpan.FromMinutes(5) };
        await using NbdListener listener = NbdListener.ListenUnix(path, options, served);
        await using NbdClient client = await NbdClient.ConnectAsync(NbdUri.Unix(path, "disk"), new NbdClientOptions(), default);
        long before = GC.GetTotalMemory(forceFullCollection: true);
        List<Socket> idle = [];
        try
        {
            while (idle.Count < asked && await TryConnectAsync(path) is { } socket)
            {
                idle.Add(socket);
                if (idle.Count % 1000 == 0)
                    await client.FlushAsync(default).AsTask().WaitAsync(TimeSpan.FromSeconds(2));
            }

            Assert.InRange(idle.Count, 900, asked); // As many as the machine has descriptors for.
            Assert.InRange(listener.ConnectionCount, 1, served);
            await client.WriteAsync(0, new byte[512], WriteFlags.None, default).AsTask().WaitAsync(TimeSpan.FromSeconds(2));
            Assert.InRange(GC.GetTotalMemory(forceFullCollection: true) - before, long.MinValue, 64 << 20);
        }
        finally
        {
            idle.ForEach(static socket => socket.Dispose());
        }

        Assert.True(SpinWait.SpinUntil(() => listener.ConnectionCount == 1, Deadline));
        await using NbdClient next = await NbdClient.ConnectAsync(NbdUri.Unix(path, "disk"), new NbdClientOptions(), default);
        await next.FlushAsync(default);
    }

    [Fact]
    public async Task Row_95_a_flush_that_fails_is_told_and_the_connection_lives_on()
    {
        bool fails = true;
        HookedDevice device = new(new MemoryBlockDevice(4096), (what, _, _) =>
            what == "flush" && fails ? throw new BlockIoException(Errno.EIO, "the disk is full of holes") : Task.CompletedTask);
        await using ClientServer world = await ClientServer.StartAsync(device, null, ServedPeer.OptionsFor(new NbdExport("disk", device)));
        await world.Client.WriteAsync(0, new byte[512], WriteFlags.None, default);
        BlockIoException e = await Assert.ThrowsAsync<BlockIoException>(async () => await world.Client.FlushAsync(default));
        Assert.Equal(Errno.EIO, e.Errno);
        fails = false;
        await world.Client.FlushAsync(default);
    }

    [Fact]
    public async Task Row_95_a_mirror_whose_target_cannot_flush_has_failed_and_the_guest_has_not()
    {
        MemoryBlockDevice source = new(1 << 20);
        HookedDevice target = new(new MemoryBlockDevice(1 << 20), static (what, _, _) =>
            what == "flush" ? throw new BlockIoException(Errno.EIO, "no") : Task.CompletedTask);
        await using MirrorDevice mirror = new(source, target, new MirrorOptions(TimeSpan.FromSeconds(5), 0), TimeProvider.System);
        await mirror.WriteAsync(0, new byte[512], WriteFlags.None, default);
        await mirror.FlushAsync(default);
        Assert.Equal(MirrorPhase.Failed, mirror.Status.Phase);
        Assert.True(source.FlushCount > 0);
        Assert.True(mirror.Status.DirtyChunks > 0);
    }

    [Fact]
    public async Task Row_96_a_target_that_comes_back_smaller_is_refused_and_nothing_is_sent_to_it()
    {
        await using MirrorDevice mirror = await FailedMirrorAsync(new MemoryBlockDevice(1 << 20));
        MemoryBlockDevice smaller = new(1 << 19);
        await using ClientServer world = await ClientServer.StartAsync(smaller, null, ServedPeer.OptionsFor(new NbdExport("disk", smaller)));
        BlockIoException e = await Assert.ThrowsAsync<BlockIoException>(() =>
            mirror.ResumeAsync(world.Client, new MirrorOptions(TimeSpan.FromSeconds(5), 0)));
        Assert.Equal(Errno.EINVAL, e.Errno);
        Assert.Equal(MirrorPhase.Failed, mirror.Status.Phase);
        Assert.All(smaller.Bytes, static value => Assert.Equal(0, value));
    }

    // Only what is dirty is sent again, so another disk is not made equal; the digests, which every switch-over compares, tell.
    [Fact]
    public async Task Row_97_a_target_that_comes_back_with_other_data_is_told_by_its_digest()
    {
        MemoryBlockDevice source = new(4 << 20);
        source.Bytes.AsSpan().Fill(7);
        await using MirrorDevice mirror = await FailedMirrorAsync(source);
        MemoryBlockDevice other = new(4 << 20);
        await using ClientServer world = await ClientServer.StartAsync(other, null, ServedPeer.OptionsFor(new NbdExport("disk", other)));
        await mirror.ResumeAsync(world.Client, new MirrorOptions(TimeSpan.FromSeconds(5), 0));
        Assert.True(SpinWait.SpinUntil(() => mirror.Status.Phase == MirrorPhase.Synced, Deadline));
        Assert.Equal(source.Bytes.AsSpan(0, 4096).ToArray(), other.Bytes.AsSpan(0, 4096).ToArray()); // What was dirty.
        Assert.NotEqual(await RootAsync(source), await RootAsync(other));
    }

    /// <summary>Synced once, then its target was lost; the first chunk is dirty.</summary>
    private static async Task<MirrorDevice> FailedMirrorAsync(MemoryBlockDevice source)
    {
        MirrorOptions options = new(TimeSpan.FromSeconds(5), 0);
        MirrorDevice mirror = new(source, new MemoryBlockDevice(source.LengthBytes), options, TimeProvider.System);
        Assert.True(SpinWait.SpinUntil(() => mirror.Status.Phase == MirrorPhase.Synced, Deadline));
        mirror.GiveUp("the test takes it away");
        await mirror.WriteAsync(0, Enumerable.Repeat((byte)9, 4096).ToArray(), WriteFlags.None, default);
        return mirror;
    }

    private static async Task<string> RootAsync(MemoryBlockDevice device)
    {
        using DigestMap digest = new(device.LengthBytes);
        return (await digest.ComputeAsync(new DigestDevice(device, digest), default)).Root;
    }

    private static async Task<Socket?> TryConnectAsync(string path)
    {
        Socket? socket = null;
        try
        {
            socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            await socket.ConnectAsync(new UnixDomainSocketEndPoint(path));
            return socket;
        }
        catch (SocketException)
        {
            socket?.Dispose();
            return null;
        }
    }

    private static IEnumerable<int> RowsOf(MethodInfo test)
    {
        List<string> texts = [test.Name];
        foreach (CustomAttributeData data in test.GetCustomAttributesData())
        {
            if (data.AttributeType == typeof(InlineDataAttribute)
                && data.ConstructorArguments[0].Value is IReadOnlyCollection<CustomAttributeTypedArgument> { Count: > 0 } values
                && values.First().Value is string head)
                texts.Add(head);
        }

        foreach (MemberDataAttribute data in test.GetCustomAttributes<MemberDataAttribute>())
            texts.AddRange(data.GetData(test).Select(static row => row[0] as string ?? ""));
        return texts.Select(static text => RowNumber().Match(text)).Where(static match => match.Success)
            .Select(static match => int.Parse(match.Groups[1].Value, CultureInfo.InvariantCulture));
    }

    [GeneratedRegex(@"^(?:Row_)?(\d\d)[_ ]")]
    private static partial Regex RowNumber();
}
