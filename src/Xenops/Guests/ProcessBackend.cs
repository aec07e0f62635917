// Simulated guests, each in a process of its own that outlives xenopsd.
using System.Diagnostics;
using Platform;

namespace Xenops.Guests;

/// <param name="program">xenopsd itself: it is the guest's program too.</param>
/// <param name="folder">STATE/guests; see <see cref="GuestFiles"/>.</param>
/// <param name="oracleFolder">Where the guests' oracle logs go.</param>
internal sealed class ProcessBackend(string program, string folder, string oracleFolder, Action<string> log) : IDomainBackend
{
    private static readonly TimeSpan StartLimit = TimeSpan.FromSeconds(20);
    private static readonly TimeSpan AnswerLimit = TimeSpan.FromSeconds(5);
    private static readonly TimeSpan LookInterval = TimeSpan.FromMilliseconds(5);

    public async Task<IGuest> CreateAsync(Vm vm, IReadOnlyList<GuestDisk> disks, CancellationToken cancellationToken)
    {
        GuestFiles files = new(folder, vm.Id);
        if (files.IsAlive)
            throw XenopsException.Internal($"a guest of VM {vm.Id} is alive in process {files.ProcessId}; it was not started twice");
        files.WriteRecord(new GuestRecord(vm, disks));
        GuestProcess? guest = null;
        try
        {
            guest = await StartAsync(files, vm, cancellationToken);
            await guest.CreateAsync(cancellationToken);
            return guest;
        }
        catch
        {
            await GuestProcess.EndAsync(files, files.ProcessId);
            throw;
        }
    }

    public async Task<IReadOnlyList<GuestFound>> FindAsync(CancellationToken cancellationToken)
    {
        List<GuestFound> found = [];
        foreach (string path in Directory.CreateDirectory(folder).GetFiles("*.json").Select(static f => f.FullName))
        {
            GuestFiles files = GuestFiles.OfRecord(path);
            if (!files.IsAlive)
            {
                log($"VM {files.Id}: its guest did not outlive an earlier xenopsd");
                files.Delete();
                continue;
            }

            using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
            limit.CancelAfter(AnswerLimit);
            try
            {
                GuestRecord record = files.ReadRecord();
                found.Add(new GuestFound(record.Vm, record.Disks, await GuestProcess.ConnectAsync(files, record.Vm, limit.Token)));
            }
            catch (Exception e) when (e is IOException or XenopsException or OperationCanceledException)
            {
                log($"VM {files.Id}: its guest (process {files.ProcessId}) does not answer and is killed: {e.Message}");
                await GuestProcess.EndAsync(files, files.ProcessId);
            }
        }

        return found;
    }

    private async Task<GuestProcess> StartAsync(GuestFiles files, Vm vm, CancellationToken cancellationToken)
    {
        using Process process = ChildProcess.StartDaemon(program, ["guest", files.Record, oracleFolder], files.Log, new Dictionary<string, string?>());
        long start = Stopwatch.GetTimestamp();
        while (true)
        {
            if (File.Exists(files.Socket) && await TryConnectAsync(files, vm, cancellationToken) is { } guest)
                return guest;
            if (process.HasExited)
                throw XenopsException.Internal($"the guest of VM {vm.Id} did not start: {File.ReadAllText(files.Log).Trim()}");
            if (Stopwatch.GetElapsedTime(start) > StartLimit)
            {
                process.Kill();
                throw XenopsException.Internal($"the guest of VM {vm.Id} did not start within {StartLimit.TotalSeconds:0} s");
            }

            await Task.Delay(LookInterval, cancellationToken);
        }
    }

    private static async Task<GuestProcess?> TryConnectAsync(GuestFiles files, Vm vm, CancellationToken cancellationToken)
    {
        try
        {
            return await GuestProcess.ConnectAsync(files, vm, cancellationToken);
        }
        catch (IOException)
        {
            return null; // The socket's file is there a moment before somebody listens.
        }
    }
}
