// What is raced against what, a method for each verb of ./dev bench. Peers get their best flags; truncating is held against truncating, in
// place against in place. None of the peers syncs unless it is asked to, so here ours does not either (--no-sync); on tmpfs it makes no
// difference.
using System.Diagnostics;
using System.Globalization;
using Vhd;

namespace Bench;

internal sealed class Benches(Workloads workloads, string folder, string vhdUtil, TextWriter log) : IDisposable
{
    private readonly List<string> cleanups = [];
    private readonly string targets = Directory.CreateDirectory(Path.Combine(folder, "targets")).FullName;

    private const string Qemu = "qemu-img convert -f vpc";

    public async IAsyncEnumerable<Race> CopyAsync()
    {
        string w1 = await workloads.W1Async();
        yield return CopyRace("copy W1 (8 GiB, a quarter allocated)", w1, "w1", 0.27, 1.10);
        yield return RawRace(w1);
        string w3 = await workloads.W3Async();
        yield return DeltaRace(w3);
        File.Delete(w3);
        string w2 = await workloads.W2Async();
        yield return CopyRace("copy W2 (half of the blocks nearly empty)", w2, "w2", null, null);
        File.Delete(w2);
        string w4 = await workloads.W4Async();
        yield return CopyRace("copy W4 (2 GiB, fully allocated)", w4, "w4", null, null);
        File.Delete(w4);
    }

    public async IAsyncEnumerable<Race> NbdAsync()
    {
        string w1 = await workloads.W1Async(), socket = At("nbd.sock"), pid = At("nbd.pid");
        if (!Child.Exists("nbdkit"))
            throw new InvalidOperationException("nbdkit is not installed; it is the server of this bench");
        long size = workloads.Scale(8L << 30);
        string raw = At("w1.raw"), uri = $"'nbd+unix:///?socket={socket}'";
        Child.Run($"{vhdUtil} convert -O raw --no-sync {w1} {raw}");
        Child.Run($"nbdkit -U {socket} -P {pid} memory {size} && {Child.Until($"test -s {pid} -a -S {socket}")}");
        List<Contender> contenders =
        [
            new("push, zero scan and digest", $"{vhdUtil} copy {w1} {uri} --target-is-zero"),
            new("push, zero scan", $"{vhdUtil} copy {w1} {uri} --target-is-zero --no-digest"),
            new("push", $"{vhdUtil} copy {w1} {uri} --target-is-zero --no-digest --no-zero-scan"),
        ];
        Add(contenders, "qemu-img", "qemu-img -W -m 16", $"{Qemu} -n --target-is-zero -W -m 16 -O raw {w1} {uri}");
        Add(contenders, "nbdcopy", "nbdcopy", $"nbdcopy --destination-is-zero {raw} {uri}");
        Race race = new(
            "push W1 to nbdkit over a unix socket",
            contenders,
            [
                new("push, zero scan and digest", "qemu-img -W -m 16", 0.70), new("push, zero scan", "qemu-img -W -m 16", 0.70),
                new("push", "qemu-img -W -m 16", 0.55), new("push", "nbdcopy", 0.42),
            ]);
        cleanups.Add($"kill $(cat {pid})");
        yield return race;
    }

    public async IAsyncEnumerable<Race> TlsAsync()
    {
        string w1 = await workloads.W1Async();
        await using TlsPush servers = new(workloads.Scale(8L << 30));
        string push = $"{vhdUtil} copy {w1} {servers.Arguments} --target-is-zero --no-digest --no-zero-scan";
        Child.Run(push);
        long mebibytes = servers.WrittenBytes >> 20;
        yield return new Race(
            $"push W1 over TLS ({mebibytes} MiB), its server in this process",
            [new("push", push), new("bare SslStream", $"{Self} send {servers.BarePort} {mebibytes} {servers.Fingerprint}")],
            [new("push", "bare SslStream", 1 / 0.9)]);
    }

    public async IAsyncEnumerable<Race> VerifyAsync()
    {
        string w1 = await workloads.W1Async(), other = At("w1-copy.vhd");
        Child.Run($"{vhdUtil} copy --no-sync {w1} {other}");
        List<Contender> compare = [new("compare", $"{vhdUtil} compare {w1} {other} >/dev/null")];
        Add(compare, "qemu-img", "qemu-img compare", $"qemu-img compare -f vpc -F vpc {w1} {other} >/dev/null");
        List<Contender> digest =
        [
            new("digest, 2 threads", $"{vhdUtil} digest {w1} >/dev/null"),
            new("digest, 1 thread", $"{vhdUtil} digest {w1} --threads 1 >/dev/null"),
        ];
        Add(digest, "openssl", "openssl dgst -sha256", $"openssl dgst -sha256 {w1} >/dev/null");
        yield return new Race("compare W1 with its copy", compare, [new("compare", "qemu-img compare", 0.40)]);
        yield return new Race(
            "SHA-256 of W1",
            digest,
            [new("digest, 2 threads", "digest, 1 thread", 0.5 / 0.92), new("digest, 2 threads", "openssl dgst -sha256", 0.55)]);
    }

    public async IAsyncEnumerable<Race> ExportAsync()
    {
        string w1 = await workloads.W1Async();
        yield return new Race(
            "export W1 to a pipe (read by dd)",
            [
                new("export", $"{vhdUtil} export {w1} | dd of=/dev/null bs=1M 2>/dev/null"),
                new("cat", $"cat {w1} | dd of=/dev/null bs=1M 2>/dev/null"),
            ],
            [new("export", "cat", 0.50)]);
    }

    public async IAsyncEnumerable<Race> MetaAsync()
    {
        string w5 = await workloads.W5Async();
        double first = await PlanAsync(w5), warm = await PlanAsync(w5);
        log.WriteLine(string.Create(
            CultureInfo.InvariantCulture, $"\nW5, opened and planned in this process: {first:f1} ms the first time, {warm:f1} ms warm (goal 10)"));
        List<Contender> contenders =
        [
            new("query (open, table, check)", $"{vhdUtil} query -n {w5} -v -a >/dev/null"),
            new("start and say help", $"{vhdUtil} query --help >/dev/null"),
            new("copy", $"{vhdUtil} copy --no-sync {w5} {At("w5-ours.vhd")}", $"rm -f {At("w5-ours.vhd")}"),
        ];
        Add(contenders, "qemu-img", "qemu-img map", $"qemu-img map -f vpc {w5} >/dev/null");
        Add(contenders, "qemu-img", "qemu-img convert", $"{Qemu} -O vpc {w5} {At("w5-qemu.vhd")}");
        yield return new Race("W5 (2040 GiB, 16 blocks)", contenders, [new("copy", "qemu-img convert", 1.0)]);
    }

    public async IAsyncEnumerable<Race> CoalesceAsync()
    {
        IReadOnlyList<string> chain = await workloads.ChainAsync(2);
        string parent = At("merge-c0.vhd"), child = At("merge-c1.vhd");
        // Each merge needs a pair that was not merged yet; the copies cost nothing that is measured.
        string fresh = $"cp {chain[0]} {parent} && cp {chain[1]} {child} && {vhdUtil} modify -n {child} -p {parent}";
        Child.Run(fresh);
        List<Contender> contenders = [new("coalesce", $"{vhdUtil} coalesce -n {child} >/dev/null", fresh)];
        List<Goal> goals = [];
        if (Child.Exists("qemu-img") && Child.Exists("qemu-io"))
        {
            // The same pages as the child holds, in a qcow2 with subclusters of their size: the least that this peer can move.
            string raw = At("merge-c0.raw"), overlay = At("merge-c1.qcow2"), kept = At("c1.qcow2"), script = At("c1.script");
            Child.Run($"{vhdUtil} convert -O raw --no-sync {chain[0]} {raw}");
            Child.Run($"qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k -b {raw} -F raw {kept}");
            File.WriteAllLines(script, workloads.PagesOfFirstChild().Select(static page => $"write -P {1 + page % 250} {(long)page * 4096} 4096"));
            Child.Run($"qemu-io -f qcow2 --cache=writeback {kept} < {script} >/dev/null");
            contenders.Add(new Contender("qemu-img commit", $"qemu-img commit -q -f qcow2 {overlay}", $"cp {kept} {overlay}"));
            goals.Add(new Goal("coalesce", "qemu-img commit", 0.30));
        }

        contenders.Add(new Contender("dd of the child", $"dd if={chain[1]} of={At("c1-dd.vhd")} bs=1M conv=notrunc 2>/dev/null"));
        yield return new Race(
            "coalesce c1 (5 % of 2 GiB in 4 KiB writes) into c0", contenders, goals, new Payload("coalesce", workloads.ChainPayloadMiB, 1.05));
    }

    /// <summary>Several disks at once: the time of four is held against twice that of two.</summary>
    public async IAsyncEnumerable<Race> ManyAsync()
    {
        string source = await workloads.W4Async();
        for (int disk = 0; disk < 4; disk++)
            Child.Run($"{vhdUtil} copy --no-sync {source} {At($"many-{disk}.vhd")}");
        yield return new Race(
            "copies in place at once, 2 GiB each",
            [
                new("2 disks", AtOnce(2)),
                new("4 disks", AtOnce(4)),
            ],
            [new("4 disks", "2 disks", 2 / 0.9)]);

        string AtOnce(int count) => string.Join(" ", Enumerable.Range(0, count).Select(disk =>
            $"{vhdUtil} copy --no-sync {source} {At($"many-{disk}.vhd")} --in-place &")) + " wait";
    }

    /// <summary>On the disk under the temporary folder, past the page cache.</summary>
    public async IAsyncEnumerable<Race> DirectAsync()
    {
        string onDisk = Directory.CreateTempSubdirectory("storage-bench-disk-").FullName;
        cleanups.Add($"rm -rf '{onDisk}'");
        string source = Path.Combine(onDisk, "w4.vhd"), ours = Path.Combine(onDisk, "ours.vhd"), peer = Path.Combine(onDisk, "qemu.vhd");
        File.Copy(await workloads.W4Async(), source);
        Child.Run("sync");
        List<Contender> contenders = [new("copy --direct", $"{vhdUtil} copy --direct {source} {ours}", $"rm -f {ours}")];
        Add(contenders, "qemu-img", "qemu-img -t none -W -m 16", $"{Qemu} -t none -T none -W -m 16 -O vpc {source} {peer}");
        yield return new Race(
            "copy W4 past the page cache, on the disk of the temporary folder",
            contenders,
            [new("copy --direct", "qemu-img -t none -W -m 16", 0.95), new("copy --direct", "qemu-img -t none -W -m 16", 0.55, IsCpu: true)]);
    }

    /// <summary>Between races: servers end and targets go; workloads stay.</summary>
    public void Clear()
    {
        cleanups.ForEach(static command => Child.Run(command));
        cleanups.Clear();
        foreach (string file in Directory.GetFiles(targets))
            File.Delete(file);
    }

    public void Dispose() => Clear();

    private Race CopyRace(string title, string source, string name, double? inPlaceLimit, double? floorLimit)
    {
        string target = At(name + "-in-place.vhd"), floor = At(name + "-dd.vhd"), ours = At(name + "-new.vhd");
        Child.Run($"cp {source} {floor} && {vhdUtil} copy --no-sync {source} {target}");
        List<Contender> contenders =
        [
            new("in place", $"{vhdUtil} copy --no-sync {source} {target} --in-place"),
            new("new file", $"{vhdUtil} copy --no-sync {source} {ours}", $"rm -f {ours}"),
            new("dd in place (floor)", $"dd if={source} of={floor} bs=1M conv=notrunc 2>/dev/null"),
        ];
        Add(contenders, "qemu-img", "qemu-img -W -m 16", $"{Qemu} -W -m 16 -O vpc {source} {At(name + "-qemu.vhd")}");
        Add(
            contenders,
            "qemu-img",
            "qemu-img -n in place",
            $"{Qemu} -n --target-is-zero -O vpc {source} {At(name + "-qemu.vhd")}");
        List<Goal> goals =
        [
            new("in place", "qemu-img -W -m 16", inPlaceLimit ?? 0.35),
            new("new file", "qemu-img -W -m 16", 0.40),
        ];
        if (name == "w2")
            goals = [new("in place", "qemu-img -n in place", 0.25, IsByMinima: true)];
        if (name == "w4")
            goals = [new("in place", "qemu-img -n in place", 0.35)];
        if (floorLimit is { } limit)
            goals.Add(new Goal("in place", "dd in place (floor)", limit));
        return new Race(title, contenders, goals, name == "w2" ? new Payload("new file", workloads.W2PayloadMiB, 1.02) : null);
    }

    private Race RawRace(string w1)
    {
        string ours = At("ours.raw");
        List<Contender> contenders = [new("new file", $"{vhdUtil} convert --no-sync -O raw {w1} {ours}", $"rm -f {ours}")];
        Add(contenders, "qemu-img", "qemu-img -W -m 16", $"{Qemu} -W -m 16 -O raw {w1} {At("qemu.raw")}");
        return new Race("convert W1 to raw", contenders, [new("new file", "qemu-img -W -m 16", 0.40)]);
    }

    private Race DeltaRace(string w3)
    {
        string ours = At("w3-ours.vhd"), floor = At("w3-dd.vhd");
        Child.Run($"cp {w3} {floor}");
        return new Race(
            "copy W3 (what one child holds: 4 KiB writes over a quarter of the blocks)",
            [
                new(
                    "layer, in place",
                    $"{vhdUtil} copy --no-sync --layer {w3} {ours} --in-place",
                    $"test -e {ours} || {vhdUtil} copy --layer {w3} {ours}"),
                new("dd of the file in place", $"dd if={w3} of={floor} bs=1M conv=notrunc 2>/dev/null"),
            ],
            [new("layer, in place", "dd of the file in place", 0.12)],
            new Payload("layer, in place", workloads.W3PayloadMiB, 1.02));
    }

    /// <summary>How this program is run again: by its own name, or by the runtime's with its own behind it.</summary>
    private static string Self =>
        Path.GetFileName(Environment.ProcessPath!) == "dotnet" ? $"{Environment.ProcessPath} {Environment.GetCommandLineArgs()[0]}" : Environment.ProcessPath!;

    /// <returns>Milliseconds to open an image and to walk over everything it has.</returns>
    private static async Task<double> PlanAsync(string image)
    {
        Stopwatch watch = Stopwatch.StartNew();
        await using VhdChain chain = VhdChain.Open(image, new VhdOpenOptions { IsReadOnly = true });
        for (long at = 0; at < chain.LengthBytes;)
            at = (await chain.ExtentsAsync(at, chain.LengthBytes - at, CancellationToken.None))[^1].EndBytes;
        return watch.Elapsed.TotalMilliseconds;
    }

    private string At(string name) => Path.Combine(targets, name);

    private static void Add(List<Contender> contenders, string program, string name, string command)
    {
        if (Child.Exists(program))
            contenders.Add(new Contender(name, command));
    }
}
