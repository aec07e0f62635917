// The digest of a memory image: SHA-256 over the SHA-256 of every page, in page order. A tree of one level, so that all pages but the
// last few are hashed while the guest still runs; the root over them costs half a millisecond for 64 MiB.
using System.Security.Cryptography;

namespace Xenops.Streaming;

internal sealed class PageDigests
{
    private static readonly byte[] ZeroPage = SHA256.HashData(new byte[GuestMemory.PageSizeBytes]);

    private readonly byte[] digests;

    public PageDigests(int pageCount)
    {
        digests = new byte[pageCount * SHA256.HashSizeInBytes];
        for (int page = 0; page < pageCount; page++)
            SetZero(page);
    }

    public void Set(int page, ReadOnlySpan<byte> content) => SHA256.HashData(content, Of(page));

    public void SetZero(int page) => ZeroPage.CopyTo(Of(page));

    public byte[] Root() => SHA256.HashData(digests);

    public static byte[] RootOf(GuestMemory memory)
    {
        PageDigests digests = new(memory.PageCount);
        for (int page = 0; page < memory.PageCount; page++)
            digests.Set(page, memory.Page(page));
        return digests.Root();
    }

    private Span<byte> Of(int page) => digests.AsSpan(page * SHA256.HashSizeInBytes, SHA256.HashSizeInBytes);
}
