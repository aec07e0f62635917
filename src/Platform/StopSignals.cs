using System.Runtime.InteropServices;

namespace Platform;

/// <summary>
/// SIGINT and SIGTERM for a command: the first asks it to end in order, the second ends the process where it is. Made before the command
/// begins: a command-line library's own handler comes after the command's first wait, which a copy does not have.
/// </summary>
public sealed class StopSignals : IDisposable
{
    private readonly CancellationTokenSource stop = new();
    private readonly PosixSignalRegistration onInterrupt;
    private readonly PosixSignalRegistration onTerminate;

    public StopSignals()
    {
        onInterrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Stop);
        onTerminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Stop);
    }

    public CancellationToken Token => stop.Token;

    public void Dispose()
    {
        onInterrupt.Dispose();
        onTerminate.Dispose();
        stop.Dispose();
    }

    private void Stop(PosixSignalContext context)
    {
        context.Cancel = !stop.IsCancellationRequested;
        stop.Cancel();
    }
}
