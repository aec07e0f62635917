using System.Security.Cryptography;
using Platform;
using StorageAccess.Tap;

namespace TapCtl;

internal static class Verbs
{
    private const string Usage = """
        usage: tap-ctl [--control-directory DIR] VERB [options]
          list          [-p pid] [-m minor] [-t type] [-f file]
          allocate      [-m minor]        the lowest free one, or a given one
          free          -m minor
          major                           of the kernel's tapdev driver, where there is one
          spawn
          attach        -p pid -m minor
          detach        -p pid -m minor
          open          -p pid -m minor -a type:path [open options]
          close         -p pid -m minor [-f] [-t seconds]
          pause         -p pid -m minor [-t seconds]
          unpause       -p pid -m minor [-a type:path] [-2 secondary] [-c log]
          create        [-m minor] -a type:path [open options]
          check
          destroy       -p pid -m minor [-t seconds]
          stats         -p pid -m minor
          mirror-status -p pid -m minor
          digest        -p pid -m minor
        Open options:
          -R            read-only
          -2 secondary  a mirror's target: nbd:PATH, nbd:HOST:PORT or nbd:LABEL
          -e minor      the parent is what this minor serves (refused if it is not)
          -D -r -t SEC  no O_DIRECT, local cache, request timeout: our tapdisk takes them and does as without them, as it uses the page
                        cache, and answers or fails each request without repeating it
          -s -C LOG -E  secondary as standby, changed-block log, key on standard input (32 or 64 bytes): passed to the tapdisk;
                        ours refuses them (exit 95), and so unpause -c
        The control folder is --control-directory, or $BLKTAP_CONTROL_DIRECTORY, or /run/blktap-control.
        Example: tap-ctl create -a vhd:/srv/disk.vhd; tap-ctl list
        """;

    private const int MaximumSeconds = 24 * 60 * 60;

    public static async Task<int> RunAsync(TapControl control, string[] arguments, CancellationToken token)
    {
        string verb = arguments.Length == 0 ? "" : arguments[0];
        string? letters = LettersOf(verb);
        if (letters is null)
        {
            bool asked = verb is "help" or "--help" or "-h";
            (asked ? Console.Out : Console.Error).WriteLine(Usage);
            return asked ? 0 : (int)Errno.EINVAL;
        }

        await RunAsync(control, verb, new Options(verb, arguments.AsSpan(1), letters), token);
        return 0;
    }

    private static string? LettersOf(string verb) => verb switch
    {
        "list" => "p:m:t:f:",
        "spawn" or "check" => "",
        "major" => "bc",
        "allocate" or "free" => "m:",
        "attach" or "detach" or "stats" or "mirror-status" or "digest" => "p:m:",
        "open" => "p:m:a:RDre:2:st:C:E",
        "close" => "p:m:ft:",
        "pause" or "destroy" => "p:m:t:",
        "unpause" => "p:m:a:2:c:",
        "create" => "m:a:RDre:2:st:C:E",
        _ => null,
    };

    private static async Task RunAsync(TapControl control, string verb, Options options, CancellationToken token)
    {
        switch (verb)
        {
            case "list":
                await ListAsync(control, options, token);
                break;
            case "allocate":
                Console.WriteLine(control.MinorPath(await AllocateAsync(control, options, token)));
                break;
            case "major":
                Console.WriteLine(Major(options));
                break;
            case "free":
                await control.FreeMinorAsync(options.Required('m'), token);
                break;
            case "spawn":
                Console.WriteLine(await control.SpawnAsync(AppContext.BaseDirectory, token));
                break;
            case "check":
                Check(control);
                break;
            case "create":
                await CreateAsync(control, options, token);
                break;
            default:
                await RunOnDiskAsync(control, verb, options.Required('p'), options.Required('m'), options, token);
                break;
        }
    }

    private static async Task RunOnDiskAsync(
        TapControl control, string verb, int processId, int minor, Options options, CancellationToken token)
    {
        switch (verb)
        {
            case "attach":
                await control.AttachAsync(processId, minor, token);
                break;
            case "detach":
                await control.DetachAsync(processId, minor, token);
                break;
            case "open":
                await OpenAsync(control, processId, minor, options, token);
                break;
            case "close":
                await control.CloseAsync(processId, minor, options.Has('f'), Deadline(options), token);
                break;
            case "pause":
                await control.PauseAsync(processId, minor, Deadline(options), token);
                break;
            case "unpause":
                await control.ResumeAsync(processId, minor, options.Text('a'), options.Text('2'), options.Text('c'), token);
                break;
            case "destroy":
                await control.CloseAsync(processId, minor, force: false, Deadline(options), token);
                await control.DetachAsync(processId, minor, token);
                await control.FreeMinorAsync(minor, token);
                break;
            case "stats":
                Console.WriteLine((await control.StatsAsync(processId, minor, token)).Json + "\n");
                break;
            case "mirror-status":
                MirrorStatus status = await new TapExtensions(control).MirrorStatusAsync(processId, minor, token);
                string error = status.Error.Length == 0 ? "" : " error=" + status.Error;
                Console.WriteLine(
                    $"state={status.Phase.ToString().ToLowerInvariant()} copied={status.CopiedBytes}/{status.TotalBytes} "
                    + $"sent={status.SentBytes} dirty_chunks={status.DirtyChunks}{error}");
                break;
            case "digest":
                Console.WriteLine((await new TapExtensions(control).DigestAsync(processId, minor, token)).Root);
                break;
        }
    }

    private static async Task<TapImage> OpenAsync(TapControl control, int processId, int minor, Options options, CancellationToken token)
    {
        string arguments = options.Text('a') ?? throw new TapException((int)Errno.EINVAL, "-a type:path is required");
        if (options.Has('s') && !options.Has('2'))
            throw new TapException((int)Errno.EINVAL, "-s says what a secondary is for, and there is no -2; nothing was opened");
        TapOpening opening = new(arguments)
        {
            Flags = (options.Has('R') ? TapOpenFlags.ReadOnly : 0) | (options.Has('D') ? TapOpenFlags.NoDirectIo : 0)
                | (options.Has('r') ? TapOpenFlags.AddLocalCache : 0) | (options.Has('s') ? TapOpenFlags.Standby : 0),
            Secondary = options.Text('2'),
            ParentMinor = options.Number('e'),
            RequestTimeoutSeconds = options.Number('t') is not { } seconds ? 0 : seconds <= ushort.MaxValue
                ? seconds
                : throw new TapException((int)Errno.EINVAL, $"-t {seconds} is longer than {ushort.MaxValue} s; nothing was opened"),
            LogPath = options.Text('C'),
            Key = options.Has('E') ? await ReadKeyAsync(token) : null,
        };
        try
        {
            return await control.OpenAsync(processId, minor, opening, token);
        }
        finally
        {
            CryptographicOperations.ZeroMemory(opening.Key);
        }
    }

    private static async Task<byte[]> ReadKeyAsync(CancellationToken token)
    {
        byte[] bytes = new byte[TapMessage.MaximumKeyBytes + 1];
        await using Stream input = Console.OpenStandardInput();
        int length = await input.ReadAtLeastAsync(bytes, bytes.Length, throwOnEndOfStream: false, token);
        byte[] key = bytes[..length];
        CryptographicOperations.ZeroMemory(bytes);
        return key;
    }

    private static Task<int> AllocateAsync(TapControl control, Options options, CancellationToken token) =>
        options.Number('m') is { } minor ? control.AllocateMinorAsync(minor, token) : control.AllocateMinorAsync(token);

    private static TimeSpan Deadline(Options options) => options.Number('t') switch
    {
        null => TapControl.OperationDeadline,
        > 0 and <= MaximumSeconds and { } seconds => TimeSpan.FromSeconds(seconds),
        { } seconds => throw new TapException((int)Errno.EINVAL, $"-t {seconds}: 1 to {MaximumSeconds} s"),
    };

    // Disks are served over NBD; only a kernel with the old driver has block devices, and with them a major.
    private static string Major(Options options)
    {
        if (options.Has('c'))
            throw new TapException((int)Errno.EINVAL, "there is no character device");
        return File.ReadLines("/proc/devices")
            .Select(static line => line.Split(' ', StringSplitOptions.RemoveEmptyEntries))
            .FirstOrDefault(static fields => fields is [_, "tapdev"])?[0]
            ?? throw new TapException(TapException.NoSuchDevice, "the kernel has no tapdev driver; disks are served over NBD");
    }

    // Whether a tapdisk could be started here.
    private static void Check(TapControl control)
    {
        if (!File.Exists(Path.Combine(AppContext.BaseDirectory, "tapdisk")))
            throw new TapException((int)Errno.ENOENT, $"there is no tapdisk in {AppContext.BaseDirectory}");
        Directory.CreateDirectory(control.ControlDirectory);
        Console.WriteLine("ok");
    }

    // All of it, or nothing is left behind.
    private static async Task CreateAsync(TapControl control, Options options, CancellationToken token)
    {
        int minor = await AllocateAsync(control, options, token);
        int? processId = null;
        bool isAttached = false;
        try
        {
            processId = await control.SpawnAsync(AppContext.BaseDirectory, token);
            await control.AttachAsync(processId.Value, minor, token);
            isAttached = true;
            await OpenAsync(control, processId.Value, minor, options, token);
            Console.WriteLine(control.MinorPath(minor));
        }
        catch
        {
            if (isAttached)
                await control.DetachAsync(processId!.Value, minor, CancellationToken.None);
            else if (processId is { } spawned)
                Posix.TryKill(spawned, 15);
            await control.FreeMinorAsync(minor, CancellationToken.None);
            throw;
        }
    }

    private static async Task ListAsync(TapControl control, Options options, CancellationToken token)
    {
        int? processId = options.Number('p');
        int? minor = options.Number('m');
        IReadOnlyList<TapEntry> entries = processId is { } one && minor is null
            ? await control.ListProcessAsync(one, token) is { Count: > 0 } own ? own : [new TapEntry(one, null, TapState.Running, null)]
            : await control.ListAsync(token);
        foreach (TapEntry entry in entries)
        {
            string[] typeAndFile = entry.Arguments?.Split(':', 2) ?? [];
            bool isWanted = (processId is null || entry.ProcessId == processId) && (minor is null || entry.Minor == minor)
                && (options.Text('t') is not { } type || (typeAndFile.Length > 0 && typeAndFile[0] == type))
                && (options.Text('f') is not { } file || (typeAndFile.Length > 1 && typeAndFile[1] == file));
            if (isWanted)
                Console.WriteLine(Line(entry));
        }
    }

    // The field's printf: %#x shows a zero without its 0x.
    private static string Line(TapEntry entry)
    {
        List<string> fields = [];
        if (entry.ProcessId is { } processId)
            fields.Add($"pid={processId}");
        if (entry.Minor is { } minor)
            fields.Add($"minor={minor}");
        if (entry is { ProcessId: not null, Minor: not null })
            fields.Add(entry.State == 0 ? "state=0" : $"state=0x{(int)entry.State:x}");
        if (entry.Arguments is { } arguments)
            fields.Add($"args={arguments}");
        return string.Join(' ', fields);
    }
}
