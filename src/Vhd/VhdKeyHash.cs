// What an encrypted image stores of its key (research/storage.md 8.3): a nonce and a hash by which a wrong key is told from the right one.
// The data itself is neither encrypted nor decrypted here.
using System.Security.Cryptography;

namespace Vhd;

/// <param name="Nonce">32 bytes in lower-case hex.</param>
/// <param name="Hash">SHA-256 of nonce and key, in lower-case hex.</param>
public sealed record VhdKeyHash(string Nonce, string Hash)
{
    public const int NonceBytes = 32;

    /// <summary>The hash that a key has with a nonce.</summary>
    public static VhdKeyHash Of(ReadOnlySpan<byte> key, ReadOnlySpan<byte> nonce)
    {
        using IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        hash.AppendData(nonce);
        hash.AppendData(key);
        return new VhdKeyHash(Convert.ToHexStringLower(nonce), Convert.ToHexStringLower(hash.GetHashAndReset()));
    }
}
