// The witness outside the guest: STATE/oracle/<vm id>.log, append-only text, one line per event, written with one write(2) so that it
// survives the death of this process. "I <sequence> <byte offset> <sha256 of the 4 KiB> <device>" before a write is issued, "A
// <sequence>" after it was acknowledged, "F <sequence>" after everything acknowledged up to there was flushed, "E <sequence> <errno>
// <text>" for a failed one, "B <seed>" when a guest boots (sequences start again at 1), "S <slots>" when a clean shutdown has put the
// original blocks back. A crash can only lose an acknowledgement, never invent one. It grows by some 90 bytes per guest write: 160 MB
// an hour at the default rate; whoever keeps a guest for long removes it.
using System.Security.Cryptography;
using System.Text;
using Microsoft.Win32.SafeHandles;

namespace Xenops.Simulator;

internal sealed class OracleLog : IDisposable
{
    private readonly SafeFileHandle file;
    private readonly Lock gate = new();
    private long endBytes;

    public OracleLog(string path)
    {
        Directory.CreateDirectory(Path.GetDirectoryName(path)!);
        file = File.OpenHandle(path, FileMode.OpenOrCreate, FileAccess.Write, FileShare.Read);
        endBytes = RandomAccess.GetLength(file);
    }

    public void Booted(ulong seed) => Append($"B {seed}\n");

    public void Issued(ulong sequence, long offsetBytes, ReadOnlySpan<byte> block, string device)
    {
        Span<byte> digest = stackalloc byte[SHA256.HashSizeInBytes];
        SHA256.HashData(block, digest);
        Append($"I {sequence} {offsetBytes} {Convert.ToHexStringLower(digest)} {device}\n");
    }

    public void Acknowledged(ulong sequence) => Append($"A {sequence}\n");

    public void Flushed(ulong sequence) => Append($"F {sequence}\n");

    public void Failed(ulong sequence, Platform.Errno errno, string why) => Append($"E {sequence} {errno} {why.ReplaceLineEndings(" ")}\n");

    public void Restored(int slots) => Append($"S {slots}\n");

    public void Dispose() => file.Dispose();

    private void Append(string line)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(line);
        lock (gate)
        {
            RandomAccess.Write(file, bytes, endBytes);
            endBytes += bytes.Length;
        }
    }
}
