using StorageAccess.Tap;

namespace TapCtl;

internal static class Verbs
{
    private const string Usage = """
        usage: tap-ctl [--control-directory DIR] VERB [options]
          list          [-p pid] [-m minor] [-t type] [-f file]
          allocate
          free          -m minor
          spawn
          attach        -p pid -m minor
          detach        -p pid -m minor
          open          -p pid -m minor -a type:path [-R] [-D] [-r] [-2 secondary]
          close         -p pid -m minor [-f] [-t seconds]
          pause         -p pid -m minor [-t seconds]
          unpause       -p pid -m minor [-a type:path] [-2 secondary]
          create        -a type:path [-R] [-2 secondary]
          check
          destroy       -p pid -m minor [-t seconds]
          stats         -p pid -m minor
          mirror-status -p pid -m minor
          digest        -p pid -m minor
        The control folder is --control-directory, or $BLKTAP_CONTROL_DIRECTORY, or /run/blktap-control.
        Example: tap-ctl create -a vhd:/srv/disk.vhd; tap-ctl list
        """;

    public static async Task<int> RunAsync(TapControl control, string[] arguments, CancellationToken token)
    {
        string verb = arguments.Length == 0 ? "" : arguments[0];
        string? letters = LettersOf(verb);
        if (letters is null)
        {
            bool asked = verb is "help" or "--help" or "-h";
            (asked ? Console.Out : Console.Error).WriteLine(Usage);
            return asked ? 0 : (int)Platform.Errno.EINVAL;
        }

        await RunAsync(control, verb, new Options(verb, arguments.AsSpan(1), letters), token);
        return 0;
    }

    private static string? LettersOf(string verb) => verb switch
    {
        "list" => "p:m:t:f:",
        "allocate" or "spawn" or "check" => "",
        "free" => "m:",
        "attach" or "detach" or "stats" or "mirror-status" or "digest" => "p:m:",
        "open" => "p:m:a:RDre:2:st:C:E",
        "close" => "p:m:ft:",
        "pause" or "destroy" => "p:m:t:",
        "unpause" => "p:m:a:2:c:",
        "create" => "a:RDre:2:st:C:E",
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
                Console.WriteLine(control.MinorPath(await control.AllocateMinorAsync(token)));
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
                await control.CloseAsync(processId, minor, options.Has('f'), token);
                break;
            case "pause":
                await control.PauseAsync(processId, minor, token);
                break;
            case "unpause":
                await control.ResumeAsync(processId, minor, options.Text('a'), options.Text('2'), token);
                break;
            case "destroy":
                await control.CloseAsync(processId, minor, force: false, token);
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
        string arguments = options.Text('a') ?? throw new TapException((int)Platform.Errno.EINVAL, "-a type:path is required");
        if ("eCEs".FirstOrDefault(options.Has) is not '\0' and char lacking)
            throw new TapException(TapException.NotSupported, $"-{lacking} is not served; nothing was opened");
        TapOpenFlags flags = (options.Has('R') ? TapOpenFlags.ReadOnly : 0) | (options.Has('D') ? TapOpenFlags.NoDirectIo : 0)
            | (options.Has('r') ? TapOpenFlags.AddLocalCache : 0);
        return await control.OpenAsync(processId, minor, arguments, flags, options.Text('2'), token);
    }

    // Whether a tapdisk could be started here.
    private static void Check(TapControl control)
    {
        if (!File.Exists(Path.Combine(AppContext.BaseDirectory, "tapdisk")))
            throw new TapException((int)Platform.Errno.ENOENT, $"there is no tapdisk in {AppContext.BaseDirectory}");
        Directory.CreateDirectory(control.ControlDirectory);
        Console.WriteLine("ok");
    }

    // All of it, or nothing is left behind.
    private static async Task CreateAsync(TapControl control, Options options, CancellationToken token)
    {
        int minor = await control.AllocateMinorAsync(token);
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
                Platform.Posix.TryKill(spawned, 15);
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
