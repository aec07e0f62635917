namespace Vhd.Transfer;

/// <summary>The front of an image that is made for a stream: everything before the first block, in memory (at most a few MiB).</summary>
internal sealed class MetadataImage(string canonicalPath) : IVhdFile
{
    private byte[] bytes = [];

    public string CanonicalPath => canonicalPath;

    public long LengthBytes => bytes.Length;

    public DateTimeOffset ModifiedAt => DateTimeOffset.UnixEpoch;

    public ReadOnlySpan<byte> Bytes => bytes;

    public int Read(long offsetBytes, Span<byte> destination)
    {
        int length = (int)Math.Clamp(bytes.Length - offsetBytes, 0, destination.Length);
        bytes.AsSpan((int)offsetBytes, length).CopyTo(destination);
        return length;
    }

    public void Write(long offsetBytes, ReadOnlySpan<byte> source)
    {
        SetLength(Math.Max(bytes.Length, offsetBytes + source.Length));
        source.CopyTo(bytes.AsSpan((int)offsetBytes));
    }

    public void Zero(long offsetBytes, long lengthBytes) => bytes.AsSpan((int)offsetBytes, (int)lengthBytes).Clear();

    public long DataEndBytes() => bytes.Length;

    public void SetLength(long lengthBytes) => Array.Resize(ref bytes, checked((int)lengthBytes));

    public void Sync()
    {
    }

    public void Dispose()
    {
    }
}
