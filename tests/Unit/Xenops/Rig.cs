// Two hosts in one process: real Domains, real TLS on loopback, real files; only storage is a fake, whose disks both hosts can reach,
// as a mirrored disk is once storage has moved.
using System.Collections.Concurrent;
using System.Net;
using System.Security.Cryptography.X509Certificates;
using Platform;
using StorageAccess;
using Support;
using Xenops;
using Xenops.Simulator;
using Xenops.Streaming;

namespace Unit.XenopsTests;

/// <summary>The storage access layer's contract, with a log of calls and one call that can be made to fail.</summary>
internal sealed class FakeDatapaths(SharedDisks disks) : IDatapaths
{
    private readonly ConcurrentDictionary<string, string> states = new();

    public ConcurrentQueue<string> Calls { get; } = new();

    /// <summary>A prefix of "VERB datapath"; such calls fail.</summary>
    public string? FailOn { get; set; }

    public IReadOnlyDictionary<string, string> States => states;

    public Task<Backend> AttachAsync(
        string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, VdiAccess access, CancellationToken cancellationToken)
    {
        Note("attach", datapath);
        disks.Find(vdi.Value);
        states[datapath.Value] = "attached";
        return Task.FromResult(new Backend([new NbdImplementation(vdi.Value)]));
    }

    public Task ActivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken)
    {
        Note("activate", datapath);
        states[datapath.Value] = "activated";
        return Task.CompletedTask;
    }

    public Task DeactivateAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken)
    {
        Note("deactivate", datapath);
        states[datapath.Value] = "attached";
        return Task.CompletedTask;
    }

    public Task DetachAsync(string dbg, DatapathId datapath, SrId sr, VdiId vdi, string vm, CancellationToken cancellationToken)
    {
        Note("detach", datapath);
        states.TryRemove(datapath.Value, out _);
        return Task.CompletedTask;
    }

    public Task DestroyAsync(string dbg, DatapathId datapath, bool allowLeak, CancellationToken cancellationToken)
    {
        Note("destroy", datapath);
        states.TryRemove(datapath.Value, out _);
        return Task.CompletedTask;
    }

    private void Note(string verb, DatapathId datapath)
    {
        string call = $"{verb} {datapath}";
        Calls.Enqueue(call);
        if (FailOn is { } prefix && call.StartsWith(prefix, StringComparison.Ordinal))
            throw new StorageException("SR_BACKEND_FAILURE_46", "", $"{call} was made to fail");
    }
}

/// <summary>Disks by VDI, and how many handles of them are open.</summary>
internal sealed class SharedDisks
{
    private readonly ConcurrentDictionary<string, MemoryBlockDevice> devices = new();
    private int openHandles;

    public int OpenHandles => Volatile.Read(ref openHandles);

    /// <summary>When set, writes wait for it.</summary>
    public Task? WriteGate { get; set; }

    /// <summary>When set, writes fail.</summary>
    public bool FailWrites { get; set; }

    public void Add(string vdi, long lengthBytes)
    {
        MemoryBlockDevice device = new(lengthBytes);
        new Random(7).NextBytes(device.Bytes);
        devices[vdi] = device;
    }

    public MemoryBlockDevice Find(string vdi) =>
        devices.TryGetValue(vdi, out MemoryBlockDevice? device) ? device : throw new StorageException("VDI_MISSING", vdi);

    public Task<IBlockDevice> OpenAsync(string vdi, CancellationToken cancellationToken)
    {
        Interlocked.Increment(ref openHandles);
        return Task.FromResult<IBlockDevice>(new Handle(this, Find(vdi)));
    }

    private sealed class Handle(SharedDisks disks, MemoryBlockDevice device) : IBlockDevice
    {
        private bool isClosed;

        public long LengthBytes => device.LengthBytes;

        public int BlockSizeBytes => device.BlockSizeBytes;

        public bool IsReadOnly => device.IsReadOnly;

        public ValueTask ReadAsync(long offsetBytes, Memory<byte> destination, CancellationToken cancellationToken) =>
            Device.ReadAsync(offsetBytes, destination, cancellationToken);

        public async ValueTask WriteAsync(
            long offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags, CancellationToken cancellationToken)
        {
            if (disks.FailWrites)
                throw new BlockIoException(Errno.EIO, "made to fail");
            if (disks.WriteGate is { } gate)
                await gate.WaitAsync(cancellationToken);
            await Device.WriteAsync(offsetBytes, source, flags, cancellationToken);
        }

        public ValueTask WriteZeroesAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
            Device.WriteZeroesAsync(offsetBytes, lengthBytes, flags, cancellationToken);

        public ValueTask TrimAsync(long offsetBytes, long lengthBytes, WriteFlags flags, CancellationToken cancellationToken) =>
            Device.TrimAsync(offsetBytes, lengthBytes, flags, cancellationToken);

        public ValueTask FlushAsync(CancellationToken cancellationToken) => Device.FlushAsync(cancellationToken);

        public ValueTask<IReadOnlyList<BlockExtent>> ExtentsAsync(
            long offsetBytes, long lengthBytes, CancellationToken cancellationToken) =>
            Device.ExtentsAsync(offsetBytes, lengthBytes, cancellationToken);

        public ValueTask DisposeAsync()
        {
            if (!isClosed)
                Interlocked.Decrement(ref disks.openHandles);
            isClosed = true;
            return ValueTask.CompletedTask;
        }

        private MemoryBlockDevice Device => isClosed ? throw new BlockIoException(Errno.ESHUTDOWN, "the handle is closed") : device;
    }
}

/// <summary>One xenopsd without its process.</summary>
internal sealed class Host : IAsyncDisposable
{
    private readonly TemporaryDirectory state = new();
    private readonly X509Certificate2 certificate = StreamTls.CreateCertificate(DateTimeOffset.UtcNow);

    public Host(SharedDisks disks)
    {
        Datapaths = new FakeDatapaths(disks);
        Storage = new DiskSource(Datapaths, state.File("datapaths"));
        SimulatorBackend simulator = new(state.File("oracle"), disks.OpenAsync, static bytes => new GuestMemory(bytes), TimeProvider.System);
        Domains = new Domains(
            new Dictionary<string, IDomainBackend> { ["simulator"] = simulator }, Storage, TimeProvider.System, static _ => { });
        Source = new MigrationSource(Domains);
        Destination = new MigrationDestination(Domains, IPAddress.Loopback, certificate);
        Server = new XenopsServer(Domains, Source, Destination);
    }

    public FakeDatapaths Datapaths { get; }

    public DiskSource Storage { get; }

    public Domains Domains { get; }

    public MigrationSource Source { get; }

    public MigrationDestination Destination { get; }

    public XenopsServer Server { get; }

    public IReadOnlyList<string> Notes => Directory.Exists(Storage.NotesFolder) ? Directory.GetFiles(Storage.NotesFolder) : [];

    public Oracle Oracle(string id) => new(File.ReadAllLines(state.File($"oracle/{id}.log")));

    public GuestStatistics GuestOf(string id) => Domains.Find(id).Guest!.Statistics;

    public string StateOf(string id) => Domains.Stat(id)["state"]!.ToString();

    public async ValueTask DisposeAsync()
    {
        await Domains.DisposeAsync();
        certificate.Dispose();
        state.Dispose();
    }
}

/// <summary>A log read by someone who did not write it.</summary>
internal sealed class Oracle(IReadOnlyList<string> lines)
{
    private readonly string[][] rows = lines.Select(static l => l.Split(' ')).ToArray();

    public IReadOnlyList<long> Issued => Numbers("I");

    public IReadOnlyList<long> Acknowledged => Numbers("A");

    public IReadOnlyList<string> IssuedLines => lines.Where(static l => l[0] == 'I').ToArray();

    public int Boots => rows.Count(static r => r[0] == "B");

    public int Errors => rows.Count(static r => r[0] == "E");

    /// <summary>Byte offset and digest of the last acknowledged write of each block.</summary>
    public Dictionary<long, string> Expected()
    {
        HashSet<long> acknowledged = [.. Acknowledged];
        return rows.Where(r => r[0] == "I" && acknowledged.Contains(long.Parse(r[1])))
            .GroupBy(static r => long.Parse(r[2]))
            .ToDictionary(static g => g.Key, static g => g.MaxBy(static r => long.Parse(r[1]))![3]);
    }

    private long[] Numbers(string kind) => rows.Where(r => r[0] == kind).Select(static r => long.Parse(r[1])).ToArray();
}

internal static class Rig
{
    public const string Id = "6c0e8d2e-1f4b-4f0f-9a53-0d9d1f3c2b11";

    public static Vm NewVm(string vdi = "disk", string id = Id) => new()
    {
        Id = id,
        Name = "test",
        MemoryBytes = 4 << 20,
        Vbds = [new Vbd { Device = "xvda", Sr = "sr", Vdi = vdi }],
        Platform = new Dictionary<string, string>
        {
            ["simulator.seed"] = "42",
            ["simulator.writes_per_second"] = "4000",
            ["simulator.dirty_pages_per_second"] = "5000",
            ["simulator.working_set_blocks"] = "128",
        },
    };

    public static async Task UntilAsync(Func<bool> condition, string what)
    {
        using CancellationTokenSource deadline = new(TimeSpan.FromSeconds(60));
        while (!condition())
        {
            Assert.False(deadline.IsCancellationRequested, $"not within 60 s: {what}");
            await Task.Delay(2);
        }
    }

    public static StreamTarget TargetOf(ReceiveEndpoint endpoint, string migration) =>
        new(migration, "127.0.0.1", endpoint.Port, new Secret(endpoint.Secret), endpoint.Fingerprint);
}
