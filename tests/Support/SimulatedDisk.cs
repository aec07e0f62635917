// A disk that dies. Writes go to a cache; only what was synced is sure to be there afterwards. Two deaths: of the process (the cache lives
// on, what was done before it is there) and of the power (of everything done since the last sync each 512-byte sector shows any of its
// states, in any mixture; lengths and names likewise). A sector itself is never torn.
using Platform;
using Vhd;

namespace Support;

/// <summary>The process died in the middle of an operation.</summary>
public sealed class SimulatedDeathException() : Exception("the simulated process is dead");

public enum Death
{
    Process,
    Power,
}

internal sealed class SimulatedDisk : IVhdStore
{
    private readonly Dictionary<string, SimulatedFile> names = [];
    private readonly Dictionary<string, SimulatedFile?> unsyncedNames = [];

    // A rename changes two names at once: a loss of power takes back both or neither.
    private readonly List<HashSet<string>> renamed = [];

    /// <summary>Operations that change something until the process dies, the fatal one not done; negative: never.</summary>
    public int OperationsLeft { get; set; } = -1;

    public int OperationCount { get; private set; }

    public bool IsDead { get; private set; }

    public IReadOnlyCollection<string> Names => names.Keys;

    public IVhdFile Open(string path, bool isWritable)
    {
        lock (names)
            return names.TryGetValue(path, out SimulatedFile? file)
                ? new Handle(this, file, path)
                : throw new BlockIoException(Errno.ENOENT, $"no file {path}");
    }

    public bool Exists(string path) => names.ContainsKey(path);

    public IVhdFile Create(string path, long reserveBytes)
    {
        Step();
        SimulatedFile file = new();
        names.Add(path, file);
        unsyncedNames[path] = null;
        return new Handle(this, file, path);
    }

    public void Publish(string temporaryPath, string path)
    {
        Step();
        unsyncedNames.TryAdd(path, null);
        names.Add(path, names[temporaryPath]);
        Step();
        Delete(temporaryPath);
        Step();
        ForgetUnsynced();
    }

    public void Delete(string path)
    {
        // The clean-up of an operation that died is not run by a dead process.
        if (IsDead || !names.ContainsKey(path))
            return;
        Step();
        names.Remove(path, out SimulatedFile? file);
        unsyncedNames.TryAdd(path, file);
    }

    public IReadOnlyList<string> NamesIn(string folder) =>
        [.. names.Keys.Where(path => Path.GetDirectoryName(path) == folder).Select(static path => Path.GetFileName(path))];

    public void Link(string existingPath, string path)
    {
        Step();
        unsyncedNames.TryAdd(path, null);
        names.Add(path, names[existingPath]);
    }

    public void Rename(string fromPath, string toPath)
    {
        Step();
        names.Remove(fromPath, out SimulatedFile? file);
        unsyncedNames.TryAdd(fromPath, file);
        unsyncedNames.TryAdd(toPath, names.GetValueOrDefault(toPath));
        names[toPath] = file!;
        HashSet<string> group = [fromPath, toPath];
        foreach (HashSet<string> other in renamed.Where(other => other.Overlaps(group)).ToArray())
        {
            group.UnionWith(other);
            renamed.Remove(other);
        }

        renamed.Add(group);
    }

    public void SyncFolder(string folder)
    {
        Step();
        ForgetUnsynced();
    }

    /// <summary>Another disk in the same state; neither sees what is done to the other. Sectors are shared.</summary>
    public SimulatedDisk Fork()
    {
        SimulatedDisk fork = new();
        Dictionary<SimulatedFile, SimulatedFile> copies = [];
        foreach ((string path, SimulatedFile file) in names)
        {
            if (!copies.TryGetValue(file, out SimulatedFile? copy))
                copies.Add(file, copy = file.Fork());
            fork.names.Add(path, copy);
        }

        return fork;
    }

    /// <summary>Everything done so far is durable.</summary>
    public void SyncAll()
    {
        ForgetUnsynced();
        foreach (SimulatedFile file in names.Values)
            file.Sync();
    }

    /// <summary>The disk as the next process finds it.</summary>
    public void Restart(Death death, Random random)
    {
        if (death == Death.Power)
        {
            foreach (string path in unsyncedNames.Keys.Where(path => !renamed.Exists(group => group.Contains(path))).ToArray())
                TakeBack([path], random);
            foreach (HashSet<string> group in renamed)
                TakeBack(group, random);
            ForgetUnsynced();
            foreach (SimulatedFile file in names.Values.Distinct())
                file.LosePower(random);
        }

        IsDead = false;
        OperationsLeft = -1;
    }

    private void TakeBack(IEnumerable<string> together, Random random)
    {
        if (random.Next(2) == 0)
            return;
        foreach (string path in together)
        {
            names.Remove(path);
            if (unsyncedNames[path] is { } before)
                names.Add(path, before);
        }
    }

    private void ForgetUnsynced()
    {
        unsyncedNames.Clear();
        renamed.Clear();
    }

    internal void Step()
    {
        if (IsDead || OperationsLeft == 0)
        {
            IsDead = true;
            throw new SimulatedDeathException();
        }

        OperationsLeft--;
        OperationCount++;
    }

    private sealed class Handle(SimulatedDisk disk, SimulatedFile file, string path) : IVhdFile
    {
        public string CanonicalPath => path;

        public long LengthBytes => file.LengthBytes;

        public DateTimeOffset ModifiedAt => DateTimeOffset.UnixEpoch.AddYears(31);

        public int Read(long offsetBytes, Span<byte> destination) => file.Read(offsetBytes, destination);

        public void Write(long offsetBytes, ReadOnlySpan<byte> source)
        {
            // A call is not atomic: the process may die inside of it, between two pages.
            while (!source.IsEmpty)
            {
                int page = (int)Math.Min(source.Length, 4096 - offsetBytes % 4096);
                disk.Step();
                file.Write(offsetBytes, source[..page]);
                source = source[page..];
                offsetBytes += page;
            }
        }

        public void Zero(long offsetBytes, long lengthBytes)
        {
            disk.Step();
            file.Zero(offsetBytes, lengthBytes);
        }

        public void SetLength(long lengthBytes)
        {
            disk.Step();
            file.SetLength(lengthBytes);
        }

        public long DataEndBytes() => file.DataEndBytes();

        public void Sync()
        {
            disk.Step();
            file.Sync();
        }

        public void Dispose()
        {
        }
    }
}

/// <summary>One file: its durable sectors, its cached ones, and every state since the last sync that a sector may fall back to.</summary>
internal sealed class SimulatedFile
{
    private const int SectorBytes = 512;

    private readonly Dictionary<long, byte[]> cache;
    private readonly Dictionary<long, List<byte[]?>> unsynced = [];
    private readonly List<long> unsyncedLengths = [];

    public SimulatedFile()
        : this([])
    {
    }

    private SimulatedFile(Dictionary<long, byte[]> cache) => this.cache = cache;

    public long LengthBytes { get; private set; }

    /// <summary>A copy of a file that has nothing unsynced.</summary>
    public SimulatedFile Fork()
    {
        lock (cache)
            return new SimulatedFile(new Dictionary<long, byte[]>(cache)) { LengthBytes = LengthBytes };
    }

    public int Read(long offsetBytes, Span<byte> destination)
    {
        lock (cache)
        {
            int length = (int)Math.Clamp(LengthBytes - offsetBytes, 0, destination.Length);
            destination[..length].Clear();
            for (int done = 0; done < length;)
            {
                long sector = (offsetBytes + done) / SectorBytes;
                int at = (int)((offsetBytes + done) % SectorBytes);
                int part = Math.Min(SectorBytes - at, length - done);
                if (cache.TryGetValue(sector, out byte[]? bytes))
                    bytes.AsSpan(at, part).CopyTo(destination[done..]);
                done += part;
            }

            return length;
        }
    }

    public void Write(long offsetBytes, ReadOnlySpan<byte> source)
    {
        lock (cache)
        {
            if (offsetBytes + source.Length > LengthBytes)
                ChangeLength(offsetBytes + source.Length);
            for (int done = 0; done < source.Length;)
            {
                long sector = (offsetBytes + done) / SectorBytes;
                int at = (int)((offsetBytes + done) % SectorBytes);
                int part = Math.Min(SectorBytes - at, source.Length - done);
                byte[] bytes = new byte[SectorBytes];
                if (part < SectorBytes && cache.TryGetValue(sector, out byte[]? old))
                    old.CopyTo(bytes, 0);
                source.Slice(done, part).CopyTo(bytes.AsSpan(at));
                Change(sector, bytes);
                done += part;
            }
        }
    }

    public void Zero(long offsetBytes, long lengthBytes)
    {
        lock (cache)
        {
            long end = offsetBytes + lengthBytes;
            foreach (long sector in cache.Keys.Where(s => (s + 1) * SectorBytes > offsetBytes && s * SectorBytes < end).ToArray())
            {
                byte[] bytes = (byte[])cache[sector].Clone();
                int from = (int)Math.Max(0, offsetBytes - sector * SectorBytes);
                int to = (int)Math.Min(SectorBytes, end - sector * SectorBytes);
                bytes.AsSpan(from, to - from).Clear();
                Change(sector, bytes.AsSpan().ContainsAnyExcept((byte)0) ? bytes : null);
            }
        }
    }

    public void SetLength(long lengthBytes)
    {
        lock (cache)
        {
            long cut = Math.Min(LengthBytes, lengthBytes);
            long old = LengthBytes;
            if (lengthBytes < old)
                Zero(cut, old - cut);
            ChangeLength(lengthBytes);
        }
    }

    public void Sync()
    {
        lock (cache)
        {
            unsynced.Clear();
            unsyncedLengths.Clear();
        }
    }

    public long DataEndBytes()
    {
        lock (cache)
            return cache.Count == 0 ? 0 : Math.Min(LengthBytes, (cache.Keys.Max() + 1) * SectorBytes);
    }

    public void LosePower(Random random)
    {
        foreach ((long sector, List<byte[]?> states) in unsynced)
        {
            int chosen = random.Next(states.Count + 1);
            if (chosen == states.Count)
                continue;
            if (states[chosen] is { } bytes)
                cache[sector] = bytes;
            else
                cache.Remove(sector);
        }

        if (unsyncedLengths.Count > 0 && random.Next(2) == 0)
            LengthBytes = unsyncedLengths[random.Next(unsyncedLengths.Count)];
        foreach (long sector in cache.Keys.Where(s => s * SectorBytes >= LengthBytes).ToArray())
            cache.Remove(sector);
        unsynced.Clear();
        unsyncedLengths.Clear();
    }

    private void Change(long sector, byte[]? bytes)
    {
        if (!unsynced.TryGetValue(sector, out List<byte[]?>? states))
            unsynced.Add(sector, states = []);
        states.Add(cache.GetValueOrDefault(sector));
        if (bytes is null)
            cache.Remove(sector);
        else
            cache[sector] = bytes;
    }

    private void ChangeLength(long lengthBytes)
    {
        unsyncedLengths.Add(LengthBytes);
        LengthBytes = lengthBytes;
    }
}
