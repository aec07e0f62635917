// A raw disk, or the inside of a fixed VHD: an offset of the disk is an offset of the file. A new one begins as a hole, so zeros are left
// out; an existing one is made zeros wherever the source has none.
namespace Vhd.Transfer;

internal sealed class RawTarget : CopyTarget
{
    private readonly IVhdFile file;
    private readonly DiskFile disk;
    private readonly long lengthBytes;
    private readonly bool isExisting;

    public RawTarget(IVhdFile file, string path, long lengthBytes, bool isExisting, bool isDirect)
    {
        this.file = file;
        this.lengthBytes = lengthBytes;
        this.isExisting = isExisting;
        disk = new DiskFile(file, path, isDirect, isWritable: true);
    }

    public override int BlockBytes => VhdHeader.DefaultBlockBytes;

    public override CopyLane OpenLane() => new Lane(this);

    public override void Finish(IReadOnlyList<int> planned, bool isSynced)
    {
        if (isExisting)
            ClearHoles(planned);
        if (isSynced)
            file.Sync();
    }

    public override void Dispose()
    {
        disk.Dispose();
        file.Dispose();
    }

    private void ClearHoles(IReadOnlyList<int> planned)
    {
        StaleBytes stale = new(file);
        long at = 0;
        foreach (int block in planned)
        {
            stale.Clear(at, (long)block * BlockBytes);
            at = (block + 1L) * BlockBytes;
        }

        stale.Clear(at, lengthBytes);
    }

    private sealed class Lane(RawTarget target) : CopyLane
    {
        private readonly StaleBytes stale = new(target.file);
        private long writtenTo;
        private long blockEnd;

        public override void BeginBlock(int block)
        {
            writtenTo = (long)block * target.BlockBytes;
            blockEnd = Math.Min(writtenTo + target.BlockBytes, target.lengthBytes);
        }

        public override void Write(long offsetBytes, ReadOnlySpan<byte> data)
        {
            ClearTo(offsetBytes);
            target.disk.Write(offsetBytes, data);
            writtenTo = offsetBytes + data.Length;
            WrittenBytes += data.Length;
        }

        public override void WriteZeros(long offsetBytes, long lengthBytes)
        {
        }

        public override void EndBlock() => ClearTo(blockEnd);

        private void ClearTo(long offsetBytes)
        {
            if (target.isExisting && offsetBytes > writtenTo)
                stale.Clear(writtenTo, offsetBytes);
        }
    }
}
