// One change of an image (create, resize, merge, another parent, repair, snapshot, hidden) that dies at each of its operations in turn. What is
// found afterwards must open, check without an error, and read as before; and the change, done again, must finish.
using Platform;
using Support;
using Vhd;

namespace Unit.VhdTests;

internal sealed class CrashScenario
{
    private const string Leaf = "/sr/leaf.vhd";
    private const string Base = "/a/base.vhd";
    private const string Other = "/b/base.vhd";
    private const int SectorsPerBlock = 4096;
    private const long TablesBytes = 300L << 21; // More blocks than two sectors of table name.

    private static readonly CancellationToken None = CancellationToken.None;

    private readonly Random random;
    private readonly SimulatedDisk prepared = new();
    private readonly SortedDictionary<long, byte> content = [];
    private readonly Action<SimulatedDisk> change;
    private readonly Action<SimulatedDisk> checkDone;
    private long sizeBytes;
    private long newSizeBytes;

    public CrashScenario(int kind, int seed)
    {
        random = new Random(HashCode.Combine(kind, seed));
        Name = $"kind {kind}, seed {seed}";
        sizeBytes = newSizeBytes = random.Next(2 * SectorsPerBlock, 3 * SectorsPerBlock) * 512L;
        checkDone = static _ => { };
        (change, checkDone) = kind switch
        {
            0 => Grow(hasParent: false),
            1 => Grow(hasParent: true),
            2 => Shrink(),
            3 => GrowFixed(),
            4 => ShrinkFixed(),
            5 => Merge(isRaw: false),
            6 => Merge(isRaw: true),
            7 => ChangeParent(),
            8 => Repair(),
            9 => Snapshot(),
            10 => Hide(),
            _ => Create(),
        };
        prepared.SyncAll();
    }

    public const int Kinds = 12;

    public string Name { get; }

    /// <summary>Dies at each operation, in both ways.</summary>
    /// <returns>The crash points.</returns>
    public int Run()
    {
        SimulatedDisk whole = prepared.Fork();
        change(whole);
        int operations = whole.OperationCount;
        Verify(whole, isDone: true, "undisturbed");
        int points = 0;
        for (int operation = 0; operation < operations; operation++)
        {
            // A power cut has many outcomes, the death of a process one.
            for (int outcome = 0; outcome < 8; outcome++)
            {
                points++;
                Death death = outcome == 0 ? Death.Process : Death.Power;
                SimulatedDisk disk = prepared.Fork();
                disk.OperationsLeft = operation;
                bool isDone = !Dies(disk);
                disk.Restart(death, random);
                Verify(disk, isDone, $"{death} death at operation {operation} of {operations}");
                if (outcome > 2)
                    continue;
                change(disk);
                Verify(disk, isDone: true, $"done again after a {death} death at operation {operation} of {operations}");
                checkDone(disk);
            }
        }

        return points;
    }

    private bool Dies(SimulatedDisk disk)
    {
        try
        {
            change(disk);
            return false;
        }
        catch (SimulatedDeathException)
        {
            return true;
        }
    }

    private void Verify(SimulatedDisk disk, bool isDone, string when)
    {
        VhdChain chain = VhdChain.Open(disk, Leaf, new VhdOpenOptions { IsReadOnly = true });
        bool isSizeRight = chain.LengthBytes == newSizeBytes || (!isDone && chain.LengthBytes == sizeBytes);
        Assert.True(isSizeRight, $"{Name}, {when}: {chain.LengthBytes} bytes, {sizeBytes} became {newSizeBytes}");
        Span<byte> found = stackalloc byte[512];
        foreach ((long sector, byte value) in content)
        {
            if ((sector + 1) * 512 > chain.LengthBytes)
                break;
            chain.Read(sector * 512, found);
            Assert.True(!found.ContainsAnyExcept(value), $"{Name}, {when}: sector {sector} holds {found[0]}, not {value}");
        }

        chain.Abandon();
        Assert.DoesNotContain(
            VhdCheck.Run(disk, Leaf, new VhdCheckOptions { WithParents = true }), static problem => problem.Severity == VhdSeverity.Error);
    }

    private (Action<SimulatedDisk>, Action<SimulatedDisk>) Grow(bool hasParent)
    {
        if (hasParent)
        {
            // The parent holds data beyond the leaf's end: what grows over it must be zeros.
            MakeChain(isRaw: false);
            sizeBytes = random.Next(SectorsPerBlock, 2 * SectorsPerBlock) * 512L;
            VhdResize.Apply(prepared, Leaf, sizeBytes, mayLoseData: true);
            foreach (long sector in content.Keys.Where(sector => sector * 512 >= sizeBytes).ToArray())
                content[sector] = 0;
        }
        else
        {
            VhdImage.CreateDynamic(prepared, Leaf, sizeBytes, new VhdCreateOptions());
            WriteSome(Leaf);
        }

        newSizeBytes = random.Next(3) == 0 ? sizeBytes + random.Next(1, 2 * SectorsPerBlock) * 512L : TablesBytes;
        foreach (long sector in new[] { sizeBytes / 512, sizeBytes / 512 + 1, newSizeBytes / 512 - 1 })
            AddZero(sector);
        return (disk => VhdResize.Apply(disk, Leaf, newSizeBytes, false), IsTidy);
    }

    private (Action<SimulatedDisk>, Action<SimulatedDisk>) Shrink()
    {
        VhdImage.CreateDynamic(prepared, Leaf, sizeBytes, new VhdCreateOptions());
        WriteSome(Leaf);
        newSizeBytes = random.Next(1, 2 * SectorsPerBlock) * 512L;
        return (disk => VhdResize.Apply(disk, Leaf, newSizeBytes, true), GrowsToZeros);
    }

    private (Action<SimulatedDisk>, Action<SimulatedDisk>) GrowFixed()
    {
        VhdImage.CreateFixed(prepared, Leaf, sizeBytes, new VhdCreateOptions());
        WriteSome(Leaf);
        newSizeBytes = sizeBytes + random.Next(1, SectorsPerBlock) * 512L;
        for (int i = 0; i < 3; i++)
            AddZero(Math.Min(sizeBytes / 512 + i, newSizeBytes / 512 - 1));
        return (disk => VhdResize.Apply(disk, Leaf, newSizeBytes, false), static _ => { });
    }

    private (Action<SimulatedDisk>, Action<SimulatedDisk>) ShrinkFixed()
    {
        VhdImage.CreateFixed(prepared, Leaf, sizeBytes, new VhdCreateOptions());
        WriteSome(Leaf);
        newSizeBytes = sizeBytes - random.Next(1, SectorsPerBlock) * 512L;
        return (disk => VhdResize.Apply(disk, Leaf, newSizeBytes, true), GrowsToZeros);
    }

    private (Action<SimulatedDisk>, Action<SimulatedDisk>) Merge(bool isRaw)
    {
        MakeChain(isRaw);
        if (random.Next(2) == 0)
        {
            // A parent that is too small grows first.
            sizeBytes = newSizeBytes = sizeBytes + random.Next(1, SectorsPerBlock) * 512L;
            VhdResize.Apply(prepared, Leaf, sizeBytes, false);
            WriteSome(Leaf);
        }

        return (disk => VhdCoalesce.Run(disk, Leaf, new VhdCoalesceOptions(), null, None), disk => HoldsAll(disk, isRaw));
    }

    private (Action<SimulatedDisk>, Action<SimulatedDisk>) ChangeParent()
    {
        MakeChain(isRaw: false);
        // The same content by another name of equal length: a merge of nothing.
        VhdImage.CreateDynamic(prepared, Other, sizeBytes, new VhdCreateOptions());
        VhdChain source = VhdChain.Open(prepared, Base, new VhdOpenOptions { IsReadOnly = true });
        VhdChain target = VhdChain.Open(prepared, Other, new VhdOpenOptions());
        byte[] sector = new byte[512];
        foreach (long at in content.Keys)
        {
            source.Read(at * 512, sector);
            Write(target, at, sector);
        }

        source.Abandon();
        target.Close();
        return (static disk => ParentChange.Apply(disk, Leaf, Other, false), static disk => Assert.Equal(Other, ParentOf(disk)));
    }

    private (Action<SimulatedDisk>, Action<SimulatedDisk>) Repair()
    {
        MakeChain(isRaw: false);
        VhdChain chain = VhdChain.Open(prepared, Leaf, new VhdOpenOptions());
        for (int i = 0; i < 6; i++)
            WriteOne(chain);
        chain.Abandon();
        return (static disk => VhdRepair.Run(disk, Leaf), IsTidy);
    }

    private (Action<SimulatedDisk>, Action<SimulatedDisk>) Snapshot()
    {
        MakeChain(isRaw: false);
        return (
            static disk =>
            {
                // A finished one may have lost its answer only.
                if (!disk.Exists(Other))
                    VhdImage.CreateSnapshot(disk, Other, Leaf, false, new VhdCreateOptions());
            },
            static disk => VhdChain.Open(disk, Other, new VhdOpenOptions()).Abandon());
    }

    private (Action<SimulatedDisk>, Action<SimulatedDisk>) Hide()
    {
        MakeChain(isRaw: false);
        return (static disk => VhdImage.SetHidden(disk, Leaf, true), static disk => Assert.True(VhdImage.ReadInfo(disk, Leaf).IsHidden));
    }

    // Either there is no image, or one that opens: a second try makes none where one is.
    private (Action<SimulatedDisk>, Action<SimulatedDisk>) Create()
    {
        MakeChain(isRaw: false);
        long created = random.Next(1, 3 * SectorsPerBlock) * 512L;
        return (
            disk =>
            {
                if (!disk.Exists(Other))
                    VhdImage.CreateDynamic(disk, Other, created, new VhdCreateOptions());
            },
            disk =>
            {
                VhdChain chain = VhdChain.Open(disk, Other, new VhdOpenOptions());
                Assert.Equal(created, chain.LengthBytes);
                chain.Abandon();
            }
        );
    }

    private void AddZero(long sector)
    {
        if (!content.ContainsKey(sector))
            content.Add(sector, 0);
    }

    private static string ParentOf(SimulatedDisk disk) => VhdImage.ReadInfo(disk, Leaf).ParentPath!;

    private static void IsTidy(SimulatedDisk disk) =>
        Assert.DoesNotContain(VhdCheck.Run(disk, Leaf, new VhdCheckOptions()), static problem => problem.Severity == VhdSeverity.Warning);

    private void GrowsToZeros(SimulatedDisk disk)
    {
        VhdResize.Apply(disk, Leaf, sizeBytes, false);
        VhdChain chain = VhdChain.Open(disk, Leaf, new VhdOpenOptions { IsReadOnly = true });
        byte[] found = new byte[512];
        foreach (long sector in content.Keys.Where(sector => sector * 512 >= newSizeBytes))
        {
            chain.Read(sector * 512, found);
            Assert.True(!found.AsSpan().ContainsAnyExcept((byte)0), $"{Name}: sector {sector} shows what was cut off");
        }

        chain.Abandon();
    }

    /// <summary>After a merge the parent alone is the disk.</summary>
    private void HoldsAll(SimulatedDisk disk, bool isRaw)
    {
        using VhdLayer? raw = isRaw ? VhdLayer.OpenRaw(disk, Base) : null;
        VhdChain? chain = isRaw ? null : VhdChain.Open(disk, Base, new VhdOpenOptions { IsReadOnly = true });
        byte[] found = new byte[512];
        foreach ((long sector, byte value) in content)
        {
            if (raw is not null)
                raw.ReadExactly(sector * 512, found);
            else
                chain!.Read(sector * 512, found);
            Assert.True(!found.AsSpan().ContainsAnyExcept(value), $"{Name}: the parent's sector {sector} holds {found[0]}, not {value}");
        }

        chain?.Abandon();
    }

    private void MakeChain(bool isRaw)
    {
        if (isRaw)
        {
            using IVhdFile file = prepared.Create(Base, 0);
            file.SetLength(sizeBytes);
        }
        else
        {
            VhdImage.CreateDynamic(prepared, Base, sizeBytes, new VhdCreateOptions());
            WriteSome(Base);
        }

        VhdImage.CreateSnapshot(prepared, Leaf, Base, isRaw, new VhdCreateOptions());
        WriteSome(Leaf);
    }

    private void WriteSome(string path)
    {
        VhdChain chain = VhdChain.Open(prepared, path, new VhdOpenOptions());
        for (int i = random.Next(1, 6); i > 0; i--)
            WriteOne(chain);
        chain.Close();
    }

    /// <summary>Near the borders of blocks and of the disk.</summary>
    private void WriteOne(VhdChain chain)
    {
        long sectors = sizeBytes / 512;
        long at = Math.Clamp(random.Next(4) * (long)SectorsPerBlock + random.Next(-6, 6), 0, sectors - 1);
        byte[] data = new byte[Math.Min(random.Next(1, 9), sectors - at) * 512];
        byte value = random.Next(5) == 0 ? (byte)0 : (byte)random.Next(1, 256);
        data.AsSpan().Fill(value);
        Write(chain, at, data);
        for (int i = 0; i < data.Length / 512; i++)
            content[at + i] = value;
    }

    private static void Write(VhdChain chain, long sector, byte[] data)
    {
        LeafWriter writer = chain.Writer;
        if (!data.AsSpan().ContainsAnyExcept((byte)0))
        {
            writer.WriteZeroes(sector * 512, data.Length, isKept: false);
            return;
        }

        writer.PutData(sector * 512, data);
        writer.SyncNow();
        writer.Claim(sector * 512, data.Length);
    }
}
