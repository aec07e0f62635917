// tapdisk: the data path of one or more disks, in a process of its own, so that a daemon can die without a guest noticing.
// It serves a control socket (docs/formats/tapdisk-control.md) and ends when its last disk is detached, or in order on SIGTERM.
using System.Runtime.InteropServices;
using Platform;
using StorageAccess.Tap;
using Tapdisk;

if (args is not ([] or ["--control-directory", _]))
{
    Console.Error.WriteLine("usage: tapdisk [--control-directory DIR]    (started by tap-ctl spawn)");
    return 22;
}

string controlDirectory = args.Length == 2 ? args[1] : TapControl.DefaultDirectory;
Posix.Detach();
try
{
    Directory.CreateDirectory(controlDirectory);
    TaskCompletionSource terminated = new(TaskCreationOptions.RunContinuationsAsynchronously);
    using PosixSignalRegistration onTerm = PosixSignalRegistration.Create(PosixSignal.SIGTERM, End);
    using PosixSignalRegistration onInt = PosixSignalRegistration.Create(PosixSignal.SIGINT, End);
    await using DiskTable disks = new(controlDirectory, TimeProvider.System);
    await using ControlServer server = new(controlDirectory, disks);
    Log.Write($"started, control folder {controlDirectory}");
    await Task.WhenAny(disks.LastDetached, terminated.Task);
    Log.Write(terminated.Task.IsCompleted ? "terminated" : "the last disk is detached");
    return 0;

    void End(PosixSignalContext context)
    {
        context.Cancel = true; // We end in order, not here.
        terminated.TrySetResult();
    }
}
catch (Exception e) when (e is IOException or UnauthorizedAccessException or System.Net.Sockets.SocketException)
{
    Log.Write($"cannot start: {e.Message}");
    return 5;
}
