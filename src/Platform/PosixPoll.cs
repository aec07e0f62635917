using System.Runtime.InteropServices;

namespace Platform;

public static partial class Posix
{
    internal const short PollIn = 1;
    internal const short PollOut = 4;
    private const int LookEveryMilliseconds = 200;

    /// <summary>Waits until there is something to read, or the end of it.</summary>
    /// <exception cref="OperationCanceledException">Cancelled, within a fifth of a second.</exception>
    public static void WaitReadable(SafeHandle file, CancellationToken cancellationToken)
    {
        do
            cancellationToken.ThrowIfCancellationRequested();
        while (!WaitFor(file, PollIn, LookEveryMilliseconds));
    }

    /// <returns>Whether the descriptor is ready, or broken; false when the time is over or a signal came.</returns>
    internal static bool WaitFor(SafeHandle file, short events, int timeoutMilliseconds)
    {
        bool isHeld = false;
        try
        {
            file.DangerousAddRef(ref isHeld);
            Polled entry = new() { Descriptor = (int)file.DangerousGetHandle(), Events = events };
            return poll(ref entry, 1, timeoutMilliseconds) > 0;
        }
        finally
        {
            if (isHeld)
                file.DangerousRelease();
        }
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int poll(ref Polled entry, nuint count, int timeout);

    private struct Polled
    {
        public int Descriptor;
        public short Events;
        public short Returned;
    }
}
