// The processes under test: tapdisks started by tap-ctl in a control folder of their own, and their peers. All gone at the end.
using System.Diagnostics;
using System.Globalization;
using StorageAccess.Tap;

namespace Bench;

internal sealed record Served(int ProcessId, int Minor, string Image, string Uri);

internal sealed class Tapdisks : IDisposable
{
    private const long DiskBytes = 2L << 30;

    private readonly string folder;
    private readonly string bin;
    private readonly string stops;
    private string? filled;

    public Tapdisks(string folder, string bin)
    {
        this.folder = folder;
        this.bin = bin;
        stops = Path.Combine(folder, "stop");
        ControlDirectory = Directory.CreateDirectory(Path.Combine(folder, "c")).FullName;
        Control = new TapControl(ControlDirectory);
    }

    public string ControlDirectory { get; }

    public TapControl Control { get; }

    /// <summary>Half of the disk is allocated, and the loads stay inside it.</summary>
    public long SizeBytes(bool isSmall) => DiskBytes / 2 / (isSmall ? 64 : 1);

    /// <summary>A dynamic VHD, its first half filled with random data.</summary>
    public string Disk(string name, bool isSmall)
    {
        string path = Path.Combine(folder, name + ".vhd");
        if (filled is null)
        {
            filled = Empty("filled", isSmall);
            Served served = Start(filled);
            Fio.Run(served.Uri, new Load("fill", "write", "1M", 4), 4, SizeBytes(isSmall));
            Stop(served);
        }

        Child.Run($"cp '{filled}' '{path}'");
        return path;
    }

    public string Empty(string name, bool isSmall)
    {
        string path = Path.Combine(folder, name + ".vhd");
        File.Delete(path);
        Child.Run($"'{bin}/vhd-util' create -n '{path}' -s {DiskBytes / (isSmall ? 64 : 1) >> 20}");
        return path;
    }

    public Served Start(string image)
    {
        Child.Run($"PATH='{bin}':$PATH '{bin}/tap-ctl' --control-directory '{ControlDirectory}' create -a 'vhd:{image}' >/dev/null");
        TapEntry entry = Control.ListAsync(CancellationToken.None).GetAwaiter().GetResult().Single(entry => entry.Arguments == "vhd:" + image);
        int processId = entry.ProcessId!.Value, minor = entry.Minor!.Value;
        File.AppendAllText(stops, $"kill -9 {processId} 2>/dev/null\n");
        return new Served(processId, minor, image, "nbd+unix:///?socket=" + Control.NbdSocketPath(processId, minor));
    }

    public void Stop(Served served) =>
        Child.Run($"'{bin}/tap-ctl' --control-directory '{ControlDirectory}' destroy -p {served.ProcessId} -m {served.Minor}");

    public void TapCtl(string verb, Served served, string more = "") => Child.Run(
        $"'{bin}/tap-ctl' --control-directory '{ControlDirectory}' {verb} -p {served.ProcessId} -m {served.Minor} {more} >/dev/null");

    /// <summary>As the field does it: every write goes to both, nothing is copied.</summary>
    public void Mirror(Served source, Served target)
    {
        TapCtl("pause", source);
        TapCtl("unpause", source, $"-a 'vhd:{source.Image}' -2 'nbd:{Control.NbdSocketPath(target.ProcessId, target.Minor)}'");
    }

    public IEnumerable<Server> StartPeers(bool isSmall)
    {
        string image = Disk("peer", isSmall);
        if (Child.Exists("qemu-storage-daemon"))
        {
            string socket = Path.Combine(folder, "qsd.sock"), pid = Path.Combine(folder, "qsd.pid");
            Child.Run($"qemu-storage-daemon --daemonize --pidfile '{pid}' --blockdev driver=file,node-name=f,filename='{image}' "
                + $"--blockdev driver=vpc,node-name=d,file=f --nbd-server addr.type=unix,addr.path='{socket}' "
                + "--export nbd,id=e,node-name=d,name=x,writable=on");
            yield return Peer("qemu-storage-daemon", $"nbd+unix:///x?socket={socket}", pid);
        }

        if (Child.Exists("nbdkit"))
        {
            string socket = Path.Combine(folder, "kit.sock"), pid = Path.Combine(folder, "kit.pid"), raw = Path.Combine(folder, "kit.raw");
            Child.Run($"truncate -s {DiskBytes} '{raw}' && dd if='{image}' of='{raw}' bs=1M conv=notrunc 2>/dev/null && nbdkit -U '{socket}' -P '{pid}' file '{raw}' "
                + $"&& {Child.Until($"test -s '{pid}' -a -S '{socket}'")}");
            yield return Peer("nbdkit file, raw", $"nbd+unix:///?socket={socket}", pid);
        }
    }

    public static double CpuSeconds(int[] processIds) => processIds.Sum(static id =>
    {
        using Process process = Process.GetProcessById(id);
        return process.TotalProcessorTime.TotalSeconds;
    });

    public static double PeakMiB(int processId) => double.Parse(
        File.ReadLines($"/proc/{processId}/status").First(static line => line.StartsWith("VmHWM", StringComparison.Ordinal))["VmHWM:".Length..].Replace("kB", ""),
        CultureInfo.InvariantCulture) / 1024;

    public void Dispose()
    {
        if (File.Exists(stops))
            Child.Run($"sh '{stops}'; true");
    }

    private Server Peer(string name, string uri, string pidFile)
    {
        int processId = int.Parse(File.ReadAllText(pidFile), CultureInfo.InvariantCulture);
        File.AppendAllText(stops, $"kill {processId} 2>/dev/null\n");
        return new Server(name, uri, [processId]);
    }
}
