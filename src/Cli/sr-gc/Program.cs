// sr-gc: collects what an SR folder of VHD files does not need any more, and says what is wrong with its chains. Facts go to standard
// output, everything else to standard error. Exit codes: 0 done, 1 something is wrong or was put off by an error, 2 the command line is,
// 3 another collector has the folder.
using System.CommandLine;
using Platform;
using SrGc;

Argument<DirectoryInfo> folder = new("FOLDER") { Description = "an SR folder (it has .sr.json)", Arity = ArgumentArity.ZeroOrOne };
Option<bool> isDry = new("--dry-run") { Description = "say what would be done, and do nothing" };
Option<bool> isOnce = new("--once") { Description = "do one step" };
Option<int> wait = new("--wait") { Description = "seconds to wait for another collector of the folder to end" };
Option<long> rate = new("--rate") { Description = "MiB per second that merges may write; 0 for no limit" };
Option<bool> isDetached = new("--detach") { Description = "leave the caller's session", Hidden = true };
Option<bool> isJson = new("--json") { Description = "print one JSON value" };
RootCommand root = new("""
    Collects the garbage of an SR folder: unused bases are deleted, bases and disks that need not be apart are merged.

    Examples:
      sr-gc /srv/sr                       until nothing is left to do
      sr-gc /srv/sr --dry-run             what it would do
      sr-gc /srv/sr --rate 50             writing no more than 50 MiB/s
      sr-gc doctor /srv/sr                the chains as trees, and what is wrong
      sr-gc doctor /srv/sr --mend         and mend what can be mended safely
    """) { folder, isDry, isOnce, wait, rate, isDetached, isJson };
root.Add(DoctorCommand.Create());
root.SetAction((result, cancellationToken) => result.GetValue(folder) is { } given
    ? CollectCommand.RunAsync(
        given.FullName,
        new CollectArguments(
            result.GetValue(isDry), result.GetValue(isOnce), result.GetValue(wait), result.GetValue(rate), result.GetValue(isDetached),
            result.GetValue(isJson)),
        cancellationToken)
    : Task.FromResult(Refuse("FOLDER is needed")));

ParseResult command = root.Parse(args);
if (command.Errors.Count > 0)
    return Refuse(string.Join("; ", command.Errors.Select(static error => error.Message)));

using StopSignals stop = new();
try
{
    InvocationConfiguration configuration = new() { EnableDefaultExceptionHandler = false, ProcessTerminationTimeout = null };
    return await command.InvokeAsync(configuration, stop.Token);
}
catch (OperationCanceledException)
{
    Console.Error.WriteLine("sr-gc: stopped; every disk reads as before, and what is left is done next time");
    return 1;
}
catch (Exception e) when (e is IOException or UnauthorizedAccessException or VhdFolder.DriverException)
{
    Console.Error.WriteLine("sr-gc: " + e.Message);
    return 1;
}

static int Refuse(string why)
{
    Console.Error.WriteLine($"sr-gc: {why}; try --help");
    return 2;
}
