// The heart of the format: at every write of create, snapshot, write, zero and flush the process or the power dies, and the image that is
// found afterwards must hold, for each sector, something that the guest may see: after a dead process exactly what was acknowledged (or the
// request in flight); after a power cut nothing older than the last answered flush. Never another sector's data, never a refused image.
using Platform;
using Support;
using Vhd;

namespace Unit.VhdTests;

public sealed class CrashTests
{
    private const int SizeBytes = 6 << 20;
    private const string Leaf = "/sr/leaf.vhd";
    private const string Parent = "/sr/parent.vhd";

    [Theory]
    [InlineData(Death.Process, false)]
    [InlineData(Death.Process, true)]
    [InlineData(Death.Power, false)]
    [InlineData(Death.Power, true)]
    public async Task Whenever_it_dies_a_disk_holds_what_it_promised(Death death, bool hasParent)
    {
        for (int seed = 0; seed < 100; seed++)
            await LivesAsync(new Random(seed), death, hasParent, $"seed {seed}");
    }

    [Theory]
    [InlineData(Death.Process)]
    [InlineData(Death.Power)]
    public void A_dying_create_or_snapshot_leaves_a_whole_image_or_none(Death death)
    {
        for (int seed = 0; seed < 20; seed++)
        {
            for (int operation = 0; ; operation++)
            {
                SimulatedDisk disk = new();
                VhdImage.CreateDynamic(disk, Parent, SizeBytes, new VhdCreateOptions());
                disk.OperationsLeft = operation;
                bool isDone = Dies(() => VhdImage.CreateSnapshot(disk, Leaf, Parent, false, new VhdCreateOptions())) is false;
                disk.Restart(death, new Random(seed));
                if (disk.Exists(Leaf))
                    VhdChain.Open(disk, Leaf, new VhdOpenOptions()).Abandon();
                Assert.True(disk.Exists(Leaf) || !isDone, "a finished create must survive");
                Assert.True(disk.Exists(Parent));
                if (isDone)
                    break;
            }
        }
    }

    [Theory]
    [InlineData(Death.Process)]
    [InlineData(Death.Power)]
    public void A_dying_change_of_hidden_leaves_the_old_value_or_the_new_one(Death death)
    {
        for (int seed = 0; seed < 50; seed++)
        {
            for (int operation = 0; operation < 5; operation++)
            {
                SimulatedDisk disk = new();
                VhdImage.CreateDynamic(disk, Leaf, SizeBytes, new VhdCreateOptions());
                disk.OperationsLeft = operation;
                bool isDone = !Dies(() => VhdImage.SetHidden(disk, Leaf, true));
                disk.Restart(death, new Random(seed));
                Assert.True(VhdImage.ReadInfo(disk, Leaf).IsHidden || !isDone);
            }
        }
    }

    [Theory]
    [InlineData("/b/parent.vhd", Death.Process)]
    [InlineData("/b/parent.vhd", Death.Power)]
    [InlineData("/b/longer-name.vhd", Death.Process)]
    public void A_dying_change_of_parent_leaves_the_old_parent_or_the_new_one(string newParent, Death death)
    {
        const string oldParent = "/a/parent.vhd";
        for (int seed = 0; seed < 50; seed++)
        {
            for (int operation = 0; ; operation++)
            {
                SimulatedDisk disk = new();
                VhdImage.CreateDynamic(disk, oldParent, SizeBytes, new VhdCreateOptions());
                VhdImage.CreateDynamic(disk, newParent, SizeBytes, new VhdCreateOptions());
                VhdImage.CreateSnapshot(disk, Leaf, oldParent, false, new VhdCreateOptions());
                disk.OperationsLeft = operation;
                bool isDone = !Dies(() => ParentChange.Apply(disk, Leaf, newParent, false));
                disk.Restart(death, new Random(seed));
                VhdChain chain = VhdChain.Open(disk, Leaf, new VhdOpenOptions());
                Assert.Contains(chain.Paths[1], isDone ? [newParent] : new[] { oldParent, newParent });
                if (isDone)
                    break;
            }
        }
    }

    private static bool Dies(Action action)
    {
        try
        {
            action();
            return false;
        }
        catch (SimulatedDeathException)
        {
            return true;
        }
    }

    /// <summary>Several lives of one disk, each ended by a death at a random operation or by an orderly close, all checked.</summary>
    /// <returns>The deaths.</returns>
    internal static async Task<int> LivesAsync(Random random, Death death, bool hasParent, string because)
    {
        int deaths = 0;
        SimulatedDisk disk = new();
        PermittedContent permitted = new(SizeBytes / 512);
        await PrepareAsync(disk, random, hasParent, permitted);
        for (int life = 0; life < 4; life++)
        {
            VhdChain chain = VhdChain.Open(disk, Leaf, new VhdOpenOptions());
            disk.OperationsLeft = random.Next(1, 60);
            try
            {
                for (int request = 0; request < 12; request++)
                    await RequestAsync(chain, random, death, permitted);
                if (random.Next(2) == 0)
                {
                    await chain.DisposeAsync();
                    permitted.Settle();
                    Assert.True(VhdMetadata.Read(disk.Open(Leaf, false), Leaf).IsTidy, because);
                }
            }
            catch (SimulatedDeathException)
            {
                deaths++;
            }

            disk.Restart(death, random);
            await CheckAsync(disk, permitted, $"{because}, life {life}");
        }

        return deaths;
    }

    private static async Task PrepareAsync(SimulatedDisk disk, Random random, bool hasParent, PermittedContent permitted)
    {
        string first = hasParent ? Parent : Leaf;
        VhdImage.CreateDynamic(disk, first, SizeBytes, new VhdCreateOptions());
        await using (VhdChain chain = VhdChain.Open(disk, first, new VhdOpenOptions()))
        {
            for (int request = 0; request < 6; request++)
                await RequestAsync(chain, random, Death.Process, permitted);
        }

        permitted.Settle();
        if (hasParent)
            VhdImage.CreateSnapshot(disk, Leaf, Parent, false, new VhdCreateOptions());
    }

    private static async Task RequestAsync(VhdChain chain, Random random, Death death, PermittedContent permitted)
    {
        // Close together, and over a block's border, so that requests meet in one bitmap and one table sector.
        int sector = random.Next(3) * 4096 + random.Next(4088, 4104) % 4096;
        int count = Math.Min(random.Next(1, 12), SizeBytes / 512 - sector);
        WriteFlags flags = random.Next(6) == 0 ? WriteFlags.Fua : WriteFlags.None;
        switch (random.Next(8))
        {
            case 0:
                await chain.FlushAsync(CancellationToken.None);
                permitted.Settle();
                return;
            case 1:
                permitted.Begin(sector, count, 0);
                await chain.WriteZeroesAsync(sector * 512L, count * 512L, flags, CancellationToken.None);
                break;
            default:
                byte value = (byte)random.Next(1, 256);
                permitted.Begin(sector, count, value);
                await chain.WriteAsync(sector * 512L, Filled(value, count), flags, CancellationToken.None);
                break;
        }

        if (death == Death.Process || flags == WriteFlags.Fua)
            permitted.SettleRange(sector, count);
    }

    private static byte[] Filled(byte value, int sectors)
    {
        byte[] data = new byte[sectors * 512];
        data.AsSpan().Fill(value);
        return data;
    }

    private static async Task CheckAsync(SimulatedDisk disk, PermittedContent permitted, string because)
    {
        VhdChain chain = VhdChain.Open(disk, Leaf, new VhdOpenOptions { IsReadOnly = true });
        byte[] found = new byte[512];
        foreach (int sector in Enumerable.Range(0, SizeBytes / 512).Where(IsUsed))
        {
            await chain.ReadAsync(sector * 512L, found, CancellationToken.None);
            Assert.True(!found.AsSpan().ContainsAnyExcept(found[0]), $"{because}: sector {sector} is a mixture");
            Assert.True(permitted.Allows(sector, found[0]), $"{because}: sector {sector} holds {found[0]} of {permitted.Of(sector)}");
            permitted.Found(sector, found[0]);
        }
    }

    /// <summary>What <see cref="RequestAsync"/> can reach.</summary>
    private static bool IsUsed(int sector) => sector % 4096 is < 24 or >= 4080;

    /// <summary>For each sector the values that a guest may find: the last settled one and every one written since.</summary>
    private sealed class PermittedContent(int sectors)
    {
        private readonly List<byte>[] values = [.. Enumerable.Range(0, sectors).Select(static _ => new List<byte> { 0 })];

        public void Begin(int sector, int count, byte value)
        {
            for (int i = sector; i < sector + count; i++)
                values[i].Add(value);
        }

        public void SettleRange(int sector, int count)
        {
            for (int i = sector; i < sector + count; i++)
                values[i].RemoveRange(0, values[i].Count - 1);
        }

        public void Settle() => SettleRange(0, values.Length);

        public bool Allows(int sector, byte value) => values[sector].Contains(value);

        public string Of(int sector) => string.Join(",", values[sector]);

        public void Found(int sector, byte value)
        {
            values[sector].Clear();
            values[sector].Add(value);
        }
    }
}
