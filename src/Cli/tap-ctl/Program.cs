// tap-ctl: the field's command line to tapdisk's control sockets (research: storage.md 6.1). Its options and its output are read by SR
// drivers, so both are the original's, parsed getopt-wise by hand: -p 1 and -p1 are the same. It exits with the errno, and says why on
// standard error.
using Platform;
using StorageAccess.Tap;
using TapCtl;

using CancellationTokenSource interrupted = new();
Console.CancelKeyPress += (_, e) =>
{
    e.Cancel = true;
    interrupted.Cancel();
};

try
{
    (string directory, string[] rest) = Options.ControlDirectory(args);
    return await Verbs.RunAsync(new TapControl(directory), rest, interrupted.Token);
}
catch (TapException e)
{
    Console.Error.WriteLine($"tap-ctl: {e.Message}");
    return e.ErrnoNumber;
}
catch (IOException e)
{
    Console.Error.WriteLine($"tap-ctl: {e.Message}");
    return (int)BlockIoException.ErrnoOf(e);
}
catch (UnauthorizedAccessException e)
{
    Console.Error.WriteLine($"tap-ctl: {e.Message}");
    return (int)Errno.EACCES;
}
catch (OperationCanceledException)
{
    return TapException.Interrupted;
}
