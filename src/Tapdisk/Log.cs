namespace Tapdisk;

/// <summary>
/// Lines on standard error, which whoever starts us has pointed at a file. Bounded: a process that has said this much says no more, so
/// that no guest and no client can fill a disk through it.
/// </summary>
internal static class Log
{
    private const int LimitBytes = 256 * 1024;
    private static int written;

    public static void Write(string text)
    {
        int before = written;
        if (before > LimitBytes)
            return;
        int after = Interlocked.Add(ref written, text.Length + 40);
        string line = after > LimitBytes ? "the log's limit is reached; nothing more is logged" : text;
        Console.Error.WriteLine($"{DateTime.UtcNow:yyyy-MM-ddTHH:mm:ss.fffZ} tapdisk[{Environment.ProcessId}] {line}");
    }
}
