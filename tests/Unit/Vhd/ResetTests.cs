// Verbs that change what an image holds without a guest: release of every block, another length of the file, the marker. Whenever the
// process or the power dies in one of them, the image opens and its disk is the old one or the new one, never a mixture.
using Platform;
using Support;
using Vhd;

namespace Unit.VhdTests;

public sealed class ResetTests
{
    // Only the first sectors of each block are ever written, and looked at.
    private const int UsedPerBlock = 700;
    private const long DiskBytes = (260 * 4096 + UsedPerBlock) * 512L;
    private const string Leaf = "/sr/leaf.vhd";
    private const string Parent = "/sr/parent.vhd";

    // Their table entries are in three sectors, which no power cut writes at once.
    private static readonly int[] Blocks = [0, 1, 130, 260];

    [Theory]
    [InlineData(Death.Process)]
    [InlineData(Death.Power)]
    public void A_dying_reset_leaves_every_block_or_none(Death death)
    {
        for (int seed = 0; seed < 6; seed++)
        {
            SimulatedDisk prepared = Chain(seed, out byte[] whole, out byte[] parent);
            for (int operation = 0; ; operation++)
            {
                Random random = new(seed * 1000 + operation);
                SimulatedDisk disk = prepared.Fork();
                disk.OperationsLeft = operation;
                bool isDone = !Dies(() => VhdImage.Reset(disk, Leaf));
                disk.Restart(death, random);
                byte[] found = ContentOf(disk);
                Assert.True(found.SequenceEqual(parent) || (!isDone && found.SequenceEqual(whole)), $"seed {seed}, operation {operation}");
                VhdImage.Reset(disk, Leaf);
                Assert.Equal(parent, ContentOf(disk));
                Assert.DoesNotContain(
                    VhdCheck.Run(disk, Leaf, new VhdCheckOptions()), static problem => problem.Severity != VhdSeverity.Note);
                if (isDone)
                    break;
            }
        }
    }

    [Fact]
    public void What_is_written_after_a_reset_is_all_that_the_image_holds()
    {
        SimulatedDisk disk = Chain(seed: 7, out _, out byte[] expected);
        VhdImage.SetMarker(disk, Leaf, 9);
        VhdImage.Reset(disk, Leaf);
        Assert.Equal((0, 9, false), (VhdImage.ReadInfo(disk, Leaf).AllocatedBlocks, (int)VhdImage.ReadInfo(disk, Leaf).Marker, false));
        Random random = new(1);
        WriteSome(disk, Leaf, random, expected);
        Assert.Equal(expected, ContentOf(disk));
    }

    [Fact]
    public void An_image_without_a_parent_is_not_reset()
    {
        SimulatedDisk disk = Chain(seed: 1, out byte[] whole, out _);
        VhdException refused = Assert.Throws<VhdException>(() => VhdImage.Reset(disk, Parent));
        Assert.Equal(VhdError.BadRequest, refused.Error);
        Assert.Equal(whole, ContentOf(disk));
    }

    [Theory]
    [InlineData(Death.Process)]
    [InlineData(Death.Power)]
    public void A_dying_change_of_the_files_length_never_changes_the_disk(Death death)
    {
        for (int seed = 0; seed < 4; seed++)
        {
            SimulatedDisk prepared = Chain(seed, out byte[] whole, out _);
            long least = VhdImage.ReadInfo(prepared, Leaf).PhysicalSizeBytes;
            foreach (long added in new long[] { 512, 8192, 5 << 20, 0 })
            {
                for (int operation = 0; operation < 5; operation++)
                {
                    SimulatedDisk disk = prepared.Fork();
                    // Once longer, and once shorter again.
                    VhdImage.SetPhysicalSize(disk, Leaf, least + (added == 0 ? 1 << 20 : 0));
                    disk.SyncAll();
                    disk.OperationsLeft = operation;
                    bool isDone = !Dies(() => VhdImage.SetPhysicalSize(disk, Leaf, least + added));
                    disk.Restart(death, new Random(seed));
                    Assert.Equal(whole, ContentOf(disk));
                    VhdInfo info = VhdImage.ReadInfo(disk, Leaf);
                    Assert.True(!isDone || (info.PhysicalSizeBytes == least + added && info.Warnings.Count == 0));
                    byte[] written = (byte[])whole.Clone();
                    WriteSome(disk, Leaf, new Random(operation), written);
                    Assert.Equal(written, ContentOf(disk));
                }
            }
        }
    }

    [Fact]
    public void A_file_is_not_made_too_short_for_what_it_holds_nor_odd()
    {
        SimulatedDisk disk = Chain(seed: 3, out byte[] whole, out _);
        long least = VhdImage.ReadInfo(disk, Leaf).PhysicalSizeBytes;
        foreach (long refused in new[] { least - 512, least + 1, 0, -512, long.MinValue })
            Assert.Equal(VhdError.BadRequest, Assert.Throws<VhdException>(() => VhdImage.SetPhysicalSize(disk, Leaf, refused)).Error);
        Assert.Equal((least, true), (VhdImage.ReadInfo(disk, Leaf).PhysicalSizeBytes, whole.SequenceEqual(ContentOf(disk))));
    }

    [Fact]
    public async Task An_image_with_a_key_hash_is_described_and_not_served()
    {
        SimulatedDisk disk = Chain(seed: 2, out _, out _);
        VhdKeyHash key = VhdKeyHash.Of(new byte[64], new byte[VhdKeyHash.NonceBytes]);
        using (IVhdFile file = disk.Open(Parent, isWritable: true))
        {
            VhdMetadata metadata = VhdMetadata.Read(file, Parent);
            file.Write(metadata.BatmapHeaderBytes + 29, [1, .. Convert.FromHexString(key.Nonce), .. Convert.FromHexString(key.Hash)]);
        }

        Assert.Equal(key, VhdImage.ReadInfo(disk, Parent).Key);
        Assert.Null(VhdImage.ReadInfo(disk, Leaf).Key);
        foreach (bool isReadOnly in new[] { true, false })
        {
            VhdException refused = await Assert.ThrowsAsync<VhdException>(async () =>
                await VhdChain.Open(disk, Leaf, new VhdOpenOptions { IsReadOnly = isReadOnly }).DisposeAsync());
            Assert.Equal((VhdError.Unsupported, Parent), (refused.Error, refused.Path));
        }
    }

    private static SimulatedDisk Chain(int seed, out byte[] whole, out byte[] parent)
    {
        Random random = new(seed);
        SimulatedDisk disk = new();
        parent = new byte[Blocks.Length * UsedPerBlock];
        VhdImage.CreateDynamic(disk, Parent, DiskBytes, new VhdCreateOptions());
        WriteSome(disk, Parent, random, parent);
        VhdImage.CreateSnapshot(disk, Leaf, Parent, false, new VhdCreateOptions());
        whole = (byte[])parent.Clone();
        WriteSome(disk, Leaf, random, whole);
        disk.SyncAll();
        return disk;
    }

    private static void WriteSome(SimulatedDisk disk, string path, Random random, byte[] content)
    {
        VhdChain chain = VhdChain.Open(disk, path, new VhdOpenOptions());
        for (int block = 0; block < Blocks.Length; block++)
        {
            int sector = random.Next(600), count = random.Next(1, 90);
            byte value = (byte)random.Next(1, 256);
            byte[] data = new byte[count * 512];
            data.AsSpan().Fill(value);
            long at = (Blocks[block] * 4096 + sector) * 512L;
            chain.Writer.PutData(at, data);
            chain.Writer.SyncNow();
            chain.Writer.Claim(at, data.Length);
            content.AsSpan(block * UsedPerBlock + sector, count).Fill(value);
        }

        chain.Close();
    }

    /// <summary>One byte for each sector, which is full of it.</summary>
    private static byte[] ContentOf(SimulatedDisk disk)
    {
        VhdChain chain = VhdChain.Open(disk, Leaf, new VhdOpenOptions { IsReadOnly = true });
        byte[] content = new byte[Blocks.Length * UsedPerBlock];
        byte[] piece = new byte[512 * UsedPerBlock];
        for (int block = 0; block < Blocks.Length; block++)
        {
            chain.Read(Blocks[block] * 4096 * 512L, piece);
            for (int i = 0; i < UsedPerBlock; i++)
            {
                content[block * UsedPerBlock + i] = piece[i * 512];
                bool isMixed = piece.AsSpan(i * 512, 512).ContainsAnyExcept(piece[i * 512]);
                Assert.False(isMixed, $"sector {i} of block {Blocks[block]} is a mixture");
            }
        }

        chain.Abandon();
        return content;
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
}
