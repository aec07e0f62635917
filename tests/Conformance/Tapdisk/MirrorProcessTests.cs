// The mirror between two real processes over TLS: the promises of decision D2, measured.
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using Nbd;
using Platform;
using StorageAccess.Tap;
using Support;

namespace Conformance.TapdiskTests;

public sealed class MirrorProcessTests
{
    private const long DiskBytes = 48 * 1024 * 1024;
    private static readonly TimeSpan StallLimit = TimeSpan.FromSeconds(2);

    [SkippableFact]
    public async Task A_finished_mirror_holds_what_the_source_holds()
    {
        Skip.IfNot(Tool.Exists("qemu-img"), Tool.Missing("qemu-img"));
        await using TapdiskWorld world = new();
        (string sourceImage, string targetImage, int source, int target) = await TwoSidesAsync(world);
        await using GuestWriter guest = new(await world.ConnectAsync(source), seed: 1);
        await world.Extensions.MirrorStartAsync(source, 0, await world.TargetAsync(target, StallLimit, 0), default);
        await world.UntilAsync(source, MirrorPhase.Synced);
        TapException busy = await Assert.ThrowsAsync<TapException>(() => world.Extensions.MirrorStartAsync(
            source, 0, new MirrorTarget("nbds://127.0.0.1:1", Secret.Create(), world.Fingerprint, StallLimit, 0), default));
        Assert.Equal(16, busy.ErrnoNumber);
        await guest.StopAsync();
        DiskDigest before = await world.Extensions.DigestAsync(source, 0, default);
        await world.Extensions.MirrorFinishAsync(source, 0, default);
        Assert.Equal(MirrorPhase.Finished, (await world.Extensions.MirrorStatusAsync(source, 0, default)).Phase);
        DiskDigest after = await world.Extensions.DigestAsync(target, 0, default);
        Assert.Equal(before.Root, after.Root);
        Assert.Equal(0, (await world.Extensions.DigestAsync(source, 0, default)).RehashedBlocks);
        await world.CloseAsync(source);
        await world.CloseAsync(target);
        await SameAsync(sourceImage, targetImage);
    }

    [SkippableFact]
    public async Task A_target_killed_in_the_middle_of_the_copy_costs_the_guest_nothing_and_is_resumed()
    {
        Skip.IfNot(Tool.Exists("qemu-img"), Tool.Missing("qemu-img"));
        await using TapdiskWorld world = new();
        (string sourceImage, string targetImage, int source, int target) = await TwoSidesAsync(world);
        await using GuestWriter guest = new(await world.ConnectAsync(source), seed: 2);
        await world.Extensions.MirrorStartAsync(source, 0, await world.TargetAsync(target, StallLimit, 8 * 1024 * 1024), default);
        await ReachedAsync(world, source, 4 * 1024 * 1024);
        Posix.TryKill(target, 9);
        MirrorStatus failed = await world.UntilAsync(source, MirrorPhase.Failed);
        Assert.NotEqual("", failed.Error);
        Assert.True(failed.IsLost);
        int count = guest.Count;
        await UntilAsync(() => guest.Count > count + 100);
        Assert.True(guest.LongestWrite < TimeSpan.FromMilliseconds(500), $"the longest write took {guest.LongestWrite}");

        int again = await world.ServeAsync("vhd:" + targetImage);
        await world.Extensions.MirrorResumeAsync(source, 0, await world.TargetAsync(again, StallLimit, 0), default);
        await world.UntilAsync(source, MirrorPhase.Synced);
        await guest.StopAsync();
        await world.Extensions.MirrorFinishAsync(source, 0, default);
        await using (NbdClient reader = await world.ConnectAsync(source))
            await guest.VerifyAsync(reader);
        Assert.Equal(
            (await world.Extensions.DigestAsync(source, 0, default)).Root, (await world.Extensions.DigestAsync(again, 0, default)).Root);
        await world.CloseAsync(source);
        await world.CloseAsync(again);
        await SameAsync(sourceImage, targetImage);
    }

    [Fact]
    public async Task A_mirror_that_is_resumed_where_there_is_none_sends_the_whole_disk_again()
    {
        await using TapdiskWorld world = new();
        (_, _, int source, int target) = await TwoSidesAsync(world);
        byte[] old = new byte[512];
        old.AsSpan().Fill(0x5a);
        await using (NbdClient earlier = await world.ConnectAsync(target)) // What an earlier mirror left, where the source has nothing.
            await earlier.WriteAsync(DiskBytes - 512, old, WriteFlags.None, default);
        await world.Extensions.MirrorResumeAsync(source, 0, await world.TargetAsync(target, StallLimit, 0), default);
        await world.UntilAsync(source, MirrorPhase.Synced);
        await world.Extensions.MirrorFinishAsync(source, 0, default);
        Assert.Equal(
            (await world.Extensions.DigestAsync(source, 0, default)).Root, (await world.Extensions.DigestAsync(target, 0, default)).Root);
        await world.CloseAsync(source);
        await world.CloseAsync(target);
    }

    [Fact]
    public async Task A_mirror_is_stopped_at_once_while_it_connects_to_a_target_that_never_answers()
    {
        await using TapdiskWorld world = new();
        (_, _, int source, _) = await TwoSidesAsync(world);
        using TcpListener silent = new(IPAddress.Loopback, 0);
        silent.Start();
        MirrorTarget target = new($"nbds://{silent.LocalEndpoint}", Secret.Create(), world.Fingerprint, StallLimit, 0);
        Task starting = world.Extensions.MirrorStartAsync(source, 0, target, default);
        using TcpClient connected = await silent.AcceptTcpClientAsync();
        long begun = Stopwatch.GetTimestamp();
        await world.Extensions.MirrorStopAsync(source, 0, default);
        TapException stopped = await Assert.ThrowsAsync<TapException>(() => starting);
        Assert.Equal(TapException.Interrupted, stopped.ErrnoNumber);
        Assert.True(Stopwatch.GetElapsedTime(begun) < TimeSpan.FromSeconds(5), "the connect's own limit is 10 s");
    }

    [Fact]
    public async Task A_target_that_stops_holds_the_guest_no_longer_than_the_limit()
    {
        await using TapdiskWorld world = new();
        (_, _, int source, int target) = await TwoSidesAsync(world);
        await using GuestWriter guest = new(await world.ConnectAsync(source), seed: 3);
        await world.Extensions.MirrorStartAsync(source, 0, await world.TargetAsync(target, StallLimit, 0), default);
        await world.UntilAsync(source, MirrorPhase.Synced);
        Posix.TryKill(target, 19);
        long stopped = Stopwatch.GetTimestamp();
        await world.UntilAsync(source, MirrorPhase.Stalled);
        Assert.True(Stopwatch.GetElapsedTime(stopped) < TimeSpan.FromSeconds(1.5), "it was not seen to stall within a second");
        await using NbdClient reader = await world.ConnectAsync(source);
        long reading = Stopwatch.GetTimestamp();
        await reader.ReadAsync(0, new byte[4096], default);
        Assert.True(Stopwatch.GetElapsedTime(reading) < TimeSpan.FromMilliseconds(500), "a read waited for the target");
        await world.UntilAsync(source, MirrorPhase.Failed);
        int count = guest.Count;
        await UntilAsync(() => guest.Count > count + 100);
        await guest.StopAsync();
        Assert.InRange(guest.LongestWrite, StallLimit - TimeSpan.FromSeconds(0.5), StallLimit + TimeSpan.FromSeconds(0.5));
        await guest.VerifyAsync(reader);

        await world.Extensions.MirrorStopAsync(source, 0, default);
        Assert.Equal(MirrorPhase.None, (await world.Extensions.MirrorStatusAsync(source, 0, default)).Phase);
        Posix.TryKill(target, 18);
    }

    private static async Task<(string SourceImage, string TargetImage, int Source, int Target)> TwoSidesAsync(TapdiskWorld world)
    {
        string sourceImage = world.CreateVhd("source.vhd", DiskBytes);
        string targetImage = world.CreateVhd("target.vhd", DiskBytes);
        int source = await world.ServeAsync("vhd:" + sourceImage);
        int target = await world.ServeAsync("vhd:" + targetImage);
        await using NbdClient disk = await world.ConnectAsync(source);
        byte[] data = new byte[1024 * 1024];
        new Random(7).NextBytes(data);
        for (long at = 0; at < DiskBytes / 2; at += data.Length)
            await disk.WriteAsync(at, data, WriteFlags.None, default);
        return (sourceImage, targetImage, source, target);
    }

    private static Task ReachedAsync(TapdiskWorld world, int source, long copiedBytes) =>
        UntilAsync(async () => (await world.Extensions.MirrorStatusAsync(source, 0, default)).CopiedBytes >= copiedBytes);

    private static Task UntilAsync(Func<bool> condition) => UntilAsync(() => Task.FromResult(condition()));

    private static async Task UntilAsync(Func<Task<bool>> condition)
    {
        long begun = Stopwatch.GetTimestamp();
        while (!await condition())
        {
            Assert.True(Stopwatch.GetElapsedTime(begun) < TimeSpan.FromSeconds(20), "it did not happen");
            await Task.Delay(10);
        }
    }

    private static async Task SameAsync(string one, string other)
    {
        ChildResult compared = await Tool.RunAsync("qemu-img", "compare", "-f", "vpc", "-F", "vpc", one, other);
        Assert.Equal("Images are identical.\n", compared.StandardOutput);
    }
}
