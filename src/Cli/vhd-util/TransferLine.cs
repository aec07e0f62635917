// One line on a terminal that says how far a transfer is; nothing at all where there is no terminal to say it to.
using System.Diagnostics;
using System.Globalization;
using Vhd.Transfer;

namespace VhdUtil;

internal sealed class TransferLine : IDisposable
{
    private static readonly TimeSpan Interval = TimeSpan.FromMilliseconds(500);

    private readonly long startedAt = Stopwatch.GetTimestamp();
    private readonly Lock gate = new();
    private Timer? timer;
    private bool wasShown;

    public TransferLine()
    {
        if (!Console.IsErrorRedirected)
            timer = new Timer(_ => Show(), null, Interval, Interval);
    }

    public TransferProgress Progress { get; } = new();

    public void Dispose()
    {
        lock (gate)
        {
            timer?.Dispose();
            timer = null;
            if (wasShown)
                Console.Error.Write("\r\e[K");
            wasShown = false;
        }
    }

    private void Show()
    {
        lock (gate)
        {
            if (timer is null || Progress.TotalBytes == 0)
                return;
            double seconds = Stopwatch.GetElapsedTime(startedAt).TotalSeconds;
            double rate = Progress.DoneBytes / seconds;
            double left = rate > 0 ? (Progress.TotalBytes - Progress.DoneBytes) / rate : 0;
            Console.Error.Write(string.Create(
                CultureInfo.InvariantCulture,
                $"\r\e[K{100.0 * Progress.DoneBytes / Progress.TotalBytes,5:f1} %  {rate / 1e6:f0} MB/s"
                + $"  {TimeSpan.FromSeconds(left):hh\\:mm\\:ss} left"));
            wasShown = true;
        }
    }
}
