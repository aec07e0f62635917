// One SR folder on a simulated disk, made by a random history (disks, writes, forks, deletes, resizes), and a collector that dies in it
// at each of its operations. Whatever is found must show every disk as before, to one who only lists the folder as well; the next holder
// of the lock leaves no tapdisk paused; and a collector run to its end leaves nothing to collect.
using Platform;
using Support;
using Vhd;
using Vhd.Collect;

namespace Unit.VhdCollectTests;

internal sealed class CollectScenario
{
    public const int Kinds = 5;

    private const string FolderPath = "/sr";
    private const int SectorsPerBlock = 4096;
    private const long LeafLimitBytes = 4096;

    private static readonly CancellationToken None = CancellationToken.None;

    private readonly Random random;
    private readonly SimulatedDisk prepared = new();
    private readonly SortedDictionary<string, SortedDictionary<long, byte>> contents = new(StringComparer.Ordinal);
    private readonly Dictionary<string, long> sizes = [];
    private readonly List<TapReference> taps = [];
    private readonly string name;
    private int made;

    public CollectScenario(int kind, int seed)
    {
        random = new Random(HashCode.Combine(kind, seed));
        name = $"kind {kind}, seed {seed}";
        Create();
        Action history = kind switch
        {
            0 => InnerOverGrown,
            1 => LastDisk,
            2 => LargeLastDisk,
            3 => OtherNames,
            _ => AnyHistory,
        };
        history();
        foreach (string key in contents.Keys.Where(_ => random.Next(2) == 0))
            taps.Add(new TapReference(1, taps.Count, key));
        prepared.SyncAll();
    }

    /// <summary>Dies at each operation, in both ways.</summary>
    /// <returns>The crash points.</returns>
    public async Task<int> RunAsync()
    {
        SimulatedDisk whole = prepared.Fork();
        SimulatedUsers users = UsersOf(whole);
        int before = whole.OperationCount;
        await CollectAsync(whole, users);
        int operations = whole.OperationCount - before;
        await VerifyEndAsync(whole, users, "undisturbed");
        int points = 0;
        for (int operation = 0; operation < operations; operation++)
        {
            for (int outcome = 0; outcome < 4; outcome++)
            {
                points++;
                await DieAsync(operation, outcome == 0 ? Death.Process : Death.Power, isFinished: outcome < 2);
            }

            await DieUnderGuestsAsync(operation);
        }

        return points;
    }

    private async Task DieAsync(int operation, Death death, bool isFinished)
    {
        string when = $"{death} death at operation {operation}";
        SimulatedDisk disk = prepared.Fork();
        SimulatedUsers users = UsersOf(disk);
        disk.OperationsLeft = operation;
        await Assert.ThrowsAsync<SimulatedDeathException>(() => CollectAsync(disk, users));
        disk.Restart(death, random);
        if (death == Death.Power)
            users.LosePower();
        ImageFolder folder = new(disk, FolderPath);
        // The one state that only its journal mends: names of other lengths, and the power lost between a header's sectors
        // (docs/formats/vhd.md).
        if (!(death == Death.Power && folder.Journals().Any(key => folder.ReadJournal(key) is { Stage: CollectStage.Relink } relink
            && relink.Children.Any(child => IsTorn(folder, child)))))
            Verify(disk, when);
        (await CollectRecovery.LockAsync(folder, users, None)).Dispose();
        Verify(disk, when + ", recovered");
        Assert.True(users.Paused.Count == 0, $"{name}, {when}: a tapdisk stays paused");
        Assert.DoesNotContain(disk.Names, static path => path.EndsWith(".new", StringComparison.Ordinal) || path.Contains(".fork-"));
        Assert.All(folder.Journals(), key => Assert.Equal(CollectStage.Merge, folder.ReadJournal(key)?.Stage));
        if (!isFinished)
            return;
        await CollectAsync(disk, users);
        await VerifyEndAsync(disk, users, when + ", collected");
    }

    /// <summary>The pauses end with the process that asked for them: guests write before the folder is mended, and go on while it is.</summary>
    private async Task DieUnderGuestsAsync(int operation)
    {
        string when = $"death at operation {operation} with guests that go on";
        SimulatedDisk disk = prepared.Fork();
        SimulatedUsers users = UsersOf(disk);
        disk.OperationsLeft = operation;
        await Assert.ThrowsAsync<SimulatedDeathException>(() => CollectAsync(disk, users));
        disk.Restart(Death.Process, random);
        ImageFolder folder = new(disk, FolderPath);
        Dictionary<string, SortedDictionary<long, byte>> before = [];
        Dictionary<TapReference, VhdChain> open = [];
        foreach (TapReference tap in users.EndPauses())
        {
            before[tap.Key] = contents[tap.Key];
            contents[tap.Key] = new SortedDictionary<long, byte>(contents[tap.Key]);
            VhdChain chain = open[tap] = VhdChain.Open(disk, folder.PathOf(tap.Key), new VhdOpenOptions());
            WriteOne(chain, tap.Key);
            users.Closing[tap] = chain.Close;
        }

        (await CollectRecovery.LockAsync(folder, users, None)).Dispose();
        foreach (TapReference tap in users.Closing.Keys)
        {
            WriteOne(open[tap], tap.Key);
            open[tap].Close();
        }

        Verify(disk, when);
        Assert.True(users.Paused.Count == 0, $"{name}, {when}: a tapdisk stays paused");
        await CollectAsync(disk, users);
        await VerifyEndAsync(disk, users, when + ", collected");
        foreach ((string key, SortedDictionary<long, byte> content) in before)
            contents[key] = content;
    }

    private static bool IsTorn(ImageFolder folder, string key)
    {
        try
        {
            folder.ReadInfo(key);
            return false;
        }
        catch (VhdException e)
        {
            return e.Error == VhdError.Damaged && e.Message.Contains("header checksum");
        }
    }

    private SimulatedUsers UsersOf(SimulatedDisk disk)
    {
        SimulatedUsers users = new(disk);
        users.Taps.AddRange(taps);
        return users;
    }

    private static async Task CollectAsync(SimulatedDisk disk, SimulatedUsers users)
    {
        Collector collector = new(
            new ImageFolder(disk, FolderPath), users, new CollectorOptions { LeafLimitBytes = LeafLimitBytes }, progress: null);
        CollectResult result = await collector.RunAsync(None);
        Assert.Empty(result.PutOff);
    }

    private async Task VerifyEndAsync(SimulatedDisk disk, SimulatedUsers users, string when)
    {
        Verify(disk, when);
        ImageFolder folder = new(disk, FolderPath);
        ImageForest forest = folder.Scan(await users.LookAsync(None), LeafLimitBytes + 1);
        Assert.Null(CollectPlan.Next(forest, LeafLimitBytes, new Dictionary<string, string>()));
        Assert.True(users.Paused.Count == 0, $"{name}, {when}: a tapdisk stays paused");
        Assert.True(
            disk.Names.All(static path => path.EndsWith(".vhd", StringComparison.Ordinal)),
            $"{name}, {when}: {string.Join(" ", disk.Names)}");
        foreach (string key in folder.Keys())
        {
            Assert.DoesNotContain(
                VhdCheck.Run(disk, folder.PathOf(key), new VhdCheckOptions()), static problem => problem.Severity != VhdSeverity.Note);
        }
    }

    /// <summary>Exactly the disks, and each with its content.</summary>
    private void Verify(SimulatedDisk disk, string when)
    {
        ImageFolder folder = new(disk, FolderPath);
        (IReadOnlySet<string> notDisks, IReadOnlySet<string> disks) = folder.BetweenStates();
        string[] shown =
            [.. folder.Keys().Where(key => disks.Contains(key) || !(folder.ReadInfo(key).IsHidden || notDisks.Contains(key)))];
        Assert.True(shown.SequenceEqual(contents.Keys), $"{name}, {when}: shows {string.Join(" ", shown)}");
        Span<byte> found = stackalloc byte[512];
        foreach ((string key, SortedDictionary<long, byte> content) in contents)
        {
            VhdChain chain = VhdChain.Open(disk, folder.PathOf(key), new VhdOpenOptions { IsReadOnly = true });
            Assert.True(chain.LengthBytes == sizes[key], $"{name}, {when}: {key} has {chain.LengthBytes} bytes, not {sizes[key]}");
            foreach ((long sector, byte value) in content)
            {
                chain.Read(sector * 512, found);
                Assert.True(!found.ContainsAnyExcept(value), $"{name}, {when}: {key}'s sector {sector} holds {found[0]}, not {value}");
            }

            chain.Abandon();
        }
    }

    private void InnerOverGrown()
    {
        Fork("d1");
        Grow("d1");
        Write("d1");
        Fork("d1");
        Fork("d1");
        Delete("d2");
        Delete("d3");
        Fork("d1");
    }

    private void LastDisk()
    {
        Fork("d1");
        Write("d1");
        if (random.Next(2) == 0)
            Grow("d1");
        Delete("d2");
    }

    private void LargeLastDisk()
    {
        LastDisk();
        for (int i = 0; i < 4; i++)
            Write("d1");
    }

    /// <summary>Names of other lengths than a base's: a header of more than one sector changes.</summary>
    private void OtherNames()
    {
        Fork("d1", "the-longest-name-that-a-disk-of-a-folder-can-have-0123456789-abc");
        Fork("d1");
        Write("d1");
        Delete("the-longest-name-that-a-disk-of-a-folder-can-have-0123456789-abc");
    }

    private void AnyHistory()
    {
        for (int i = random.Next(4, 12); i > 0; i--)
        {
            string key = contents.Keys.ElementAt(random.Next(contents.Count));
            switch (random.Next(6))
            {
                case 0 or 1 when contents.Count < 4:
                    Fork(key);
                    break;
                case 2 when contents.Count > 1:
                    Delete(key);
                    break;
                case 3:
                    Grow(key);
                    break;
                default:
                    Write(key);
                    break;
            }
        }
    }

    private ImageFolder Folder => new(prepared, FolderPath);

    private void Create()
    {
        string key = $"d{++made}";
        long sizeBytes = random.Next(SectorsPerBlock, 2 * SectorsPerBlock) * 512L;
        VhdImage.CreateDynamic(prepared, Folder.PathOf(key), sizeBytes, new VhdCreateOptions());
        contents.Add(key, []);
        sizes.Add(key, sizeBytes);
        Write(key);
    }

    private void Fork(string key, string? newKey = null)
    {
        newKey ??= $"d{++made}";
        // Of one length, as a driver's are; the disks' are shorter.
        Folder.Fork(key, $"base-{prepared.OperationCount:D8}", newKey);
        contents.Add(newKey, new SortedDictionary<long, byte>(contents[key]));
        sizes.Add(newKey, sizes[key]);
        Write(key);
        if (random.Next(2) == 0)
            Write(newKey);
    }

    private void Delete(string key)
    {
        Folder.Delete(key);
        contents.Remove(key);
        sizes.Remove(key);
    }

    private void Grow(string key)
    {
        long old = sizes[key];
        sizes[key] += random.Next(1, SectorsPerBlock) * 512L;
        VhdResize.Apply(prepared, Folder.PathOf(key), sizes[key], mayLoseData: false);
        contents[key][old / 512] = 0;
        contents[key][sizes[key] / 512 - 1] = 0;
    }

    private void Write(string key)
    {
        VhdChain chain = VhdChain.Open(prepared, Folder.PathOf(key), new VhdOpenOptions());
        for (int i = random.Next(1, 4); i > 0; i--)
            WriteOne(chain, key);
        chain.Close();
    }

    /// <summary>Near the borders of blocks and of the disk.</summary>
    private void WriteOne(VhdChain chain, string key)
    {
        long sectors = sizes[key] / 512;
        long at = Math.Clamp(random.Next(4) * (long)SectorsPerBlock + random.Next(-6, 6), 0, sectors - 1);
        byte[] data = new byte[Math.Min(random.Next(1, 6), sectors - at) * 512];
        byte value = random.Next(5) == 0 ? (byte)0 : (byte)random.Next(1, 256);
        data.AsSpan().Fill(value);
        if (value == 0)
        {
            chain.Writer.WriteZeroes(at * 512, data.Length, isKept: false);
        }
        else
        {
            chain.Writer.PutData(at * 512, data);
            chain.Writer.SyncNow();
            chain.Writer.Claim(at * 512, data.Length);
        }

        for (int i = 0; i < data.Length / 512; i++)
            contents[key][at + i] = value;
    }
}
