// `key`: the hash of an encrypted image's key (research/storage.md 8.3, 8.5). It can be printed, computed and compared; it cannot be set,
// because an image that has one is not served here. A key is read from its file, never printed, and cleared.
using System.CommandLine;
using System.Security.Cryptography;
using Platform;
using Vhd;

namespace VhdUtil;

internal static class KeyCommand
{
    private const int MaxKeyBytes = 64;

    public static Command Create()
    {
        Option<string> name = new("-n") { Description = "the image" };
        Option<string> key = new("-k") { Description = "the file with the key, 32 or 64 raw bytes" };
        Option<string> nonce = new("-N") { Description = "with -C, the nonce in hex (default: zeros)" };
        Option<string> hash = new("-H") { Description = "with -s, the hash in hex" };
        Option<bool> isPrinted = new("-p") { Description = "print the image's nonce and hash, or none" };
        Option<bool> isComputed = new("-C") { Description = "print the hash of the key" };
        Option<bool> isChecked = new("-c") { Description = "whether the image's hash is that of the key" };
        Option<bool> isSet = new("-s") { Description = "refused: encrypted images are not served here" };
        Command command = new("key", "Look at the key hash of an encrypted image.")
        {
            name, key, nonce, hash, isPrinted, isComputed, isChecked, isSet,
        };
        Options.AddCommon(command);
        command.Validators.Add(result =>
        {
            bool hasName = result.GetValue(name) is not null, hasKey = result.GetValue(key) is not null;
            bool isComplete = result.GetValue(isComputed) ? hasKey
                : hasName && (result.GetValue(isSet) || (result.GetValue(isChecked) && hasKey) || result.GetValue(isPrinted));
            if (!isComplete)
                result.AddError("key: -p -n IMAGE, -c -n IMAGE -k KEY or -C -k KEY [-N NONCE]");
        });
        command.SetAction(result =>
        {
            if (result.GetValue(isComputed))
            {
                Console.Out.WriteLine(HashOf(result.GetRequiredValue(key), NonceOf(result.GetValue(nonce))).Hash);
                return 0;
            }

            string path = result.GetRequiredValue(name);
            if (result.GetValue(isSet))
                throw new VhdException(
                    VhdError.Unsupported, path, "encryption is not supported, and a key hash cannot be set; nothing was changed");
            VhdKeyHash? stored = VhdImage.ReadInfo(path).Key;
            if (result.GetValue(isChecked))
                Check(path, stored, result.GetRequiredValue(key));
            if (result.GetValue(isPrinted))
                Console.Out.WriteLine(stored is null ? "none" : $"{stored.Nonce} {stored.Hash}");
            return 0;
        });
        return command;
    }

    private static void Check(string path, VhdKeyHash? stored, string keyPath)
    {
        if (stored is null)
            throw new VhdException(VhdError.BadRequest, path, "it has no key hash");
        if (HashOf(keyPath, Convert.FromHexString(stored.Nonce)) != stored)
            throw new VhdException(VhdError.BadRequest, path, $"its key hash is not that of {keyPath}");
    }

    private static VhdKeyHash HashOf(string keyPath, byte[] nonce)
    {
        Span<byte> key = stackalloc byte[MaxKeyBytes + 1];
        try
        {
            // Without a buffer, in which a copy of the key would be left.
            using FileStream file = new(keyPath, FileMode.Open, FileAccess.Read, FileShare.Read, bufferSize: 0);
            int length = file.ReadAtLeast(key, key.Length, throwOnEndOfStream: false);
            return length is 32 or MaxKeyBytes
                ? VhdKeyHash.Of(key[..length], nonce)
                : throw new BlockIoException(Errno.EINVAL, $"{keyPath} is no key: one has 32 or {MaxKeyBytes} bytes");
        }
        finally
        {
            CryptographicOperations.ZeroMemory(key);
        }
    }

    private static byte[] NonceOf(string? hex)
    {
        byte[] nonce = hex is null ? new byte[VhdKeyHash.NonceBytes] : Convert.FromHexString(hex);
        return nonce.Length == VhdKeyHash.NonceBytes
            ? nonce
            : throw new FormatException($"a nonce has {2 * VhdKeyHash.NonceBytes} hex digits, not {hex!.Length}");
    }
}
