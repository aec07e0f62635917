// Real processes, judged by qemu-io, qemu-img, nbdcopy and nbdinfo.
using Nbd;
using Platform;
using StorageAccess.Tap;
using Support;

namespace Conformance.TapdiskTests;

public sealed class TapdiskProcessTests
{
    private const long DiskBytes = 64 * 1024 * 1024;

    [SkippableFact]
    public async Task A_disk_written_by_qemu_io_reads_back_across_pause_and_is_a_valid_image_when_closed()
    {
        Skip.IfNot(Tool.Exists("qemu-io"), Tool.Missing("qemu-io"));
        await using TapdiskWorld world = new();
        string image = world.CreateVhd("a.vhd", DiskBytes);
        int tapdisk = await world.ServeAsync("vhd:" + image);
        ChildResult wrote = await Tool.RunAsync(
            "qemu-io", "-f", "raw", "-c", "write -P 0xa5 1M 3M", "-c", "write -z 2M 64k", "-c", "flush", world.UriOf(tapdisk));
        Assert.Equal(0, wrote.ExitCode);
        await world.Control.PauseAsync(tapdisk, 0, default);
        Assert.Equal(TapState.Paused | TapState.Quiesced | TapState.Closed, (await world.Control.ListAsync(default)).Single().State);
        await world.Control.ResumeAsync(tapdisk, 0, null, null, default);
        ChildResult read = await Tool.RunAsync(
            "qemu-io", "-f", "raw", "-c", "read -P 0xa5 1M 1M", "-c", "read -P 0 2M 64k", "-c", "read -P 0 8M 4k", world.UriOf(tapdisk));
        Assert.Equal(0, read.ExitCode);
        Assert.Contains("\"hits\"", (await world.Control.StatsAsync(tapdisk, 0, default)).Json, StringComparison.Ordinal);
        await Tool.RunAsync("nbdcopy", world.UriOf(tapdisk), world.PathOf("copy.raw"));
        await world.CloseAsync(tapdisk);
        ChildResult compared = await Tool.RunAsync("qemu-img", "compare", "-f", "vpc", "-F", "raw", image, world.PathOf("copy.raw"));
        Assert.Equal("Images are identical.\n", compared.StandardOutput);
    }

    [Fact]
    public async Task A_terminated_tapdisk_closes_its_image_and_leaves_no_socket()
    {
        await using TapdiskWorld world = new();
        string image = world.CreateVhd("a.vhd", DiskBytes);
        int tapdisk = await world.ServeAsync("vhd:" + image);
        await using (NbdClient client = await world.ConnectAsync(tapdisk))
            await client.WriteAsync(4096, new byte[4096], WriteFlags.None, default);
        Posix.TryKill(tapdisk, 15);
        await EndedAsync(tapdisk);
        Assert.Equal(["tapdisk.log"], Directory.GetFiles(world.Control.ControlDirectory).Select(Path.GetFileName));
        await using Vhd.VhdChain chain = Vhd.VhdChain.Open(image, new Vhd.VhdOpenOptions { IsReadOnly = true });
        Assert.Empty(chain.Warnings);
    }

    [Fact]
    public async Task What_is_wrong_is_an_errno_and_a_sentence_and_changes_nothing()
    {
        await using TapdiskWorld world = new();
        string image = world.CreateVhd("a.vhd", DiskBytes);
        int tapdisk = await world.ServeAsync("vhd:" + image);
        await Refused(114, () => world.Control.OpenAsync(tapdisk, 0, "vhd:" + image, TapOpenFlags.None, null, default));
        await Refused(16, () => world.Control.DetachAsync(tapdisk, 0, default));
        await Refused(17, () => world.Control.AttachAsync(tapdisk, 0, default));
        await Refused(19, () => world.Control.StatsAsync(tapdisk, 7, default));
        await Refused(22, () => world.Control.ResumeAsync(tapdisk, 0, null, "nbd:/somewhere", default));
        await world.Control.PauseAsync(tapdisk, 0, default);
        await Refused(95, () => world.Control.ResumeAsync(tapdisk, 0, null, "aio:/somewhere", default));
        await world.Control.ResumeAsync(tapdisk, 0, null, null, default);
        await Refused(2, () => world.Extensions.MirrorFinishAsync(tapdisk, 0, default));
        await world.Control.AttachAsync(tapdisk, 1, default);
        await Refused(2, () => world.Control.OpenAsync(tapdisk, 1, "vhd:/no/such.vhd", TapOpenFlags.None, null, default));
        Assert.Equal(["export", "mirror", "mirror-give-up", "digest", "digest-range", "pause"], await world.Extensions.CapabilitiesAsync(tapdisk, default));
        Assert.Equal(2, (await world.Control.ListProcessAsync(tapdisk, default)).Count);
    }

    [Fact]
    public async Task An_export_answers_to_its_secret_name_only_and_to_nobody_when_it_is_ended()
    {
        await using TapdiskWorld world = new();
        int tapdisk = await world.ServeAsync("vhd:" + world.CreateVhd("a.vhd", DiskBytes));
        MirrorTarget target = await world.TargetAsync(tapdisk, TimeSpan.FromSeconds(1), 0);
        await using NbdClient client = await ConnectAsync(target, target.Name.Reveal(), world.Fingerprint);
        await client.WriteAsync(0, new byte[4096], WriteFlags.None, default);
        await Assert.ThrowsAnyAsync<IOException>(() => ConnectAsync(target, "someone-elses-name", world.Fingerprint));
        await Assert.ThrowsAnyAsync<IOException>(() => ConnectAsync(target, target.Name.Reveal(), new string('0', 64)));
        await world.Extensions.UnexportAsync(tapdisk, 0, target.Name, default);
        await Assert.ThrowsAnyAsync<IOException>(() => client.WriteAsync(0, new byte[4096], WriteFlags.None, default).AsTask());
        await Assert.ThrowsAnyAsync<IOException>(() => ConnectAsync(target, target.Name.Reveal(), world.Fingerprint));
    }

    private static Task<NbdClient> ConnectAsync(MirrorTarget target, string name, string fingerprint)
    {
        NbdUri at = NbdUri.TryParse(target.Uri)!;
        return NbdClient.ConnectAsync(
            NbdUri.Tcp(at.Host!, at.Port, name, isTls: true), new NbdClientOptions { Tls = NbdTls.ForClient(fingerprint) }, default);
    }

    private static async Task Refused(int errno, Func<Task> call) =>
        Assert.Equal(errno, (await Assert.ThrowsAsync<TapException>(call)).ErrnoNumber);

    private static async Task EndedAsync(int processId)
    {
        for (int i = 0; i < 1000 && IsRunning(processId); i++)
            await Task.Delay(10);
        Assert.False(IsRunning(processId), "it did not end");
    }

    // An ended process that nobody has waited for has no command line.
    private static bool IsRunning(int processId)
    {
        string path = $"/proc/{processId}/cmdline";
        return File.Exists(path) && File.ReadAllText(path).Length > 0;
    }

    [Fact]
    public async Task A_pause_ends_with_the_connection_that_asked_for_it_unless_somebody_else_has_paused_since()
    {
        await using TapdiskWorld world = new();
        int tapdisk = await world.ServeAsync("vhd:" + world.CreateVhd("a.vhd", 1 << 20));
        await using NbdClient guest = await world.ConnectAsync(tapdisk);
        IDisposable hold = await world.Extensions.PauseAsync(tapdisk, 0, TimeSpan.FromSeconds(10), default);
        Task write = guest.WriteAsync(0, new byte[512], WriteFlags.None, default).AsTask();
        Assert.True(await IsPausedAsync());
        Assert.False(write.IsCompleted);
        hold.Dispose();
        await write.WaitAsync(TimeSpan.FromSeconds(30));

        hold = await world.Extensions.PauseAsync(tapdisk, 0, TimeSpan.FromSeconds(10), default);
        await world.Control.ResumeAsync(tapdisk, 0, null, null, default);
        await world.Control.PauseAsync(tapdisk, 0, default);
        hold.Dispose();
        using IDisposable later = await world.Extensions.PauseAsync(tapdisk, 0, TimeSpan.FromSeconds(10), default);
        later.Dispose();
        // The list comes after both ends: they are seen in the order of their connections, and neither was the pause's.
        Assert.True(await IsPausedAsync());
        await world.Control.ResumeAsync(tapdisk, 0, null, null, default);
        await guest.WriteAsync(0, new byte[512], WriteFlags.None, default);

        async Task<bool> IsPausedAsync() =>
            Assert.Single(await world.Control.ListProcessAsync(tapdisk, default)).State.HasFlag(TapState.Paused);
    }
}
