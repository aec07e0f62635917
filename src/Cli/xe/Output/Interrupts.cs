using System.Runtime.InteropServices;

namespace Xe.Output;

/// <summary>SIGINT and SIGTERM: the first asks, the second insists, a third ends the process where it is.</summary>
internal sealed class Interrupts : IDisposable
{
    private readonly CancellationTokenSource asked = new();
    private readonly CancellationTokenSource insisted = new();
    private readonly PosixSignalRegistration[] registrations;

    public Interrupts() => registrations = [PosixSignalRegistration.Create(PosixSignal.SIGINT, On), PosixSignalRegistration.Create(PosixSignal.SIGTERM, On)];

    public CancellationToken Asked => asked.Token;

    public CancellationToken Insisted => insisted.Token;

    public void Dispose()
    {
        foreach (PosixSignalRegistration registration in registrations)
            registration.Dispose();
        asked.Dispose();
        insisted.Dispose();
    }

    private void On(PosixSignalContext signal)
    {
        signal.Cancel = !insisted.IsCancellationRequested;
        Count();
    }

    internal void Count()
    {
        if (asked.IsCancellationRequested)
            insisted.Cancel();
        else
            asked.Cancel();
    }
}
