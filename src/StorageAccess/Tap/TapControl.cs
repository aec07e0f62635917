// tapdisk's control protocol, the client's side: what tap-ctl and the SR drivers do with a control folder (research: storage.md 6.1, 6.3).
// The folder holds ctl<pid> (one socket per process), nbd*<pid>.<minor> (per open disk), and tapdisk/tapdisk-<minor> (one file per minor
// taken).
using System.Diagnostics;
using System.Globalization;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using Microsoft.Win32.SafeHandles;
using Platform;

namespace StorageAccess.Tap;

/// <summary>One line of <c>tap-ctl list</c>: a process without disks has no minor, a minor that nobody attached has no process.</summary>
/// <param name="Arguments"><c>type:path</c>, or null while nothing is open.</param>
public sealed record TapEntry(int? ProcessId, int? Minor, TapState State, string? Arguments);

/// <summary>A disk's size as <c>open</c> answers it.</summary>
public sealed record TapImage(long LengthBytes, int SectorSizeBytes, bool IsReadOnly);

/// <summary>What a tapdisk counts; <see cref="Json"/> is the field's object, whole (research: storage.md 6.2).</summary>
public sealed record TapStats(string Json, bool MirrorFailed, long OutstandingRequests);

/// <summary>
/// All tapdisks of one control folder, ours and the original. Every exchange has a deadline; all failures are <see
/// cref="TapException"/>.
/// </summary>
public sealed class TapControl(string controlDirectory = TapControl.DefaultDirectory)
{
    public const string DefaultDirectory = "/run/blktap-control";

    /// <summary>The most that may follow a record, in either direction.</summary>
    public const int MaximumFollowingBytes = 1024 * 1024;

    private const int MinorCount = 16384;

    /// <summary>What a change of a disk may take, unless the caller says otherwise.</summary>
    public static readonly TimeSpan OperationDeadline = TimeSpan.FromSeconds(120);

    private static readonly TimeSpan QueryDeadline = TimeSpan.FromSeconds(10);
    private static readonly TimeSpan RetryDelay = TimeSpan.FromMilliseconds(50);

    public string ControlDirectory { get; } = controlDirectory;

    /// <summary>The file that stands for a minor; drivers hand it out as the device's path.</summary>
    public string MinorPath(int minor) => Path.Combine(ControlDirectory, "tapdisk", $"tapdisk-{minor}");

    /// <summary>The unix socket of an open disk's NBD server; any export name is accepted there.</summary>
    public string NbdSocketPath(int processId, int minor) => Path.Combine(ControlDirectory, $"nbd{processId}.{minor}");

    /// <summary>Whose NBD socket this is by its name, <c>nbd&lt;pid&gt;.&lt;minor&gt;</c>; null when it is none of a tapdisk's.</summary>
    public static (int ProcessId, int Minor)? ServerOf(string nbdSocketPath)
    {
        string name = Path.GetFileName(nbdSocketPath);
        string[] parts = name.StartsWith("nbd", StringComparison.Ordinal) ? name[3..].Split('.') : [];
        return parts.Length == 2 && int.TryParse(parts[0], NumberStyles.None, CultureInfo.InvariantCulture, out int processId)
            && int.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out int minor) ? (processId, minor) : null;
    }

    /// <summary>The same server under the name that older clients look for.</summary>
    public string OldNbdSocketPath(int processId, int minor) => Path.Combine(ControlDirectory, $"nbd-old{processId}.{minor}");

    /// <summary>Where a connected NBD client is handed over to be served: after a newstyle handshake, or an old-style greeting.</summary>
    public string PassingSocketPath(int processId, int minor, bool isNewStyle) =>
        Path.Combine(ControlDirectory, $"nbdserver{(isNewStyle ? "-new" : "")}{processId}.{minor}");

    /// <summary>Where a connection to a mirror target is handed over, with its label.</summary>
    public string NbdClientSocketPath(int processId) => Path.Combine(ControlDirectory, $"nbdclient{processId}");

    public string ControlSocketPath(int processId) => Path.Combine(ControlDirectory, $"ctl{processId}");

    /// <summary>Starts <c>tapdisk</c> of a tools folder; it outlives us. Returns its process id when its control socket answers.</summary>
    public async Task<int> SpawnAsync(string toolsDirectory, CancellationToken cancellationToken)
    {
        Directory.CreateDirectory(ControlDirectory);
        string program = Path.Combine(toolsDirectory, "tapdisk");
        if (!File.Exists(program))
            throw new TapException((int)Errno.ENOENT, $"there is no {program}; nothing was started");
        string logPath = Path.Combine(ControlDirectory, "tapdisk.log");
        using Process process = ChildProcess.StartDaemon(
            program, ["--control-directory", ControlDirectory], logPath, new Dictionary<string, string?>());
        int processId = process.Id;
        try
        {
            return await WithDeadlineAsync(QueryDeadline, $"tapdisk {processId} did not open its control socket", async token =>
            {
                while (!await AnswersAsync(processId, token))
                {
                    if (process.HasExited)
                        throw new TapException((int)Errno.EIO, $"tapdisk ended at once with exit code {process.ExitCode}; see {logPath}");
                    await Task.Delay(5, token);
                }

                return processId;
            }, cancellationToken);
        }
        catch when (!process.HasExited)
        {
            process.Kill(); // A daemon that nobody will talk to is not left behind.
            throw;
        }
    }

    /// <summary>Takes a given minor.</summary>
    /// <exception cref="TapException">EEXIST: it is taken. EINVAL: there is no such minor.</exception>
    public async Task<int> AllocateMinorAsync(int minor, CancellationToken cancellationToken)
    {
        if (minor is < 0 or >= MinorCount)
            throw new TapException((int)Errno.EINVAL, $"there is no minor {minor}: 0 to {MinorCount - 1}");
        using SafeFileHandle gate = await LockMinorsAsync(cancellationToken);
        try
        {
            using FileStream file = new(MinorPath(minor), FileMode.CreateNew, FileAccess.Write);
            return minor;
        }
        catch (IOException e) when (File.Exists(MinorPath(minor)))
        {
            throw new TapException((int)Errno.EEXIST, $"minor {minor} is taken already; nothing was changed", e);
        }
    }

    /// <summary>Takes the lowest free minor.</summary>
    public async Task<int> AllocateMinorAsync(CancellationToken cancellationToken)
    {
        using SafeFileHandle gate = await LockMinorsAsync(cancellationToken);
        for (int minor = 0; minor < MinorCount; minor++)
        {
            try
            {
                using FileStream file = new(MinorPath(minor), FileMode.CreateNew, FileAccess.Write);
                return minor;
            }
            catch (IOException) when (File.Exists(MinorPath(minor)))
            {
                continue;
            }
        }

        throw new TapException((int)Errno.ENOSPC, $"all {MinorCount} minors of {ControlDirectory} are taken");
    }

    /// <summary>Gives a minor back. Freeing a free one is not an error: a driver repeats what it is not sure of.</summary>
    public async Task FreeMinorAsync(int minor, CancellationToken cancellationToken)
    {
        using SafeFileHandle gate = await LockMinorsAsync(cancellationToken);
        File.Delete(MinorPath(minor));
    }

    public Task AttachAsync(int processId, int minor, CancellationToken cancellationToken) =>
        CallAsync(processId, new TapMessage(TapMessageType.Attach, minor), OperationDeadline, cancellationToken);

    public Task DetachAsync(int processId, int minor, CancellationToken cancellationToken) =>
        CallAsync(processId, new TapMessage(TapMessageType.Detach, minor), OperationDeadline, cancellationToken);

    /// <param name="arguments"><c>vhd:/path</c> or <c>aio:/path</c>.</param>
    /// <param name="secondary">A mirror's target in the field's spelling (<c>nbd:…</c>), or null.</param>
    public Task<TapImage> OpenAsync(
        int processId, int minor, string arguments, TapOpenFlags flags, string? secondary, CancellationToken cancellationToken) =>
        OpenAsync(processId, minor, new TapOpening(arguments) { Flags = flags, Secondary = secondary }, cancellationToken);

    /// <exception cref="TapException">What the tapdisk refuses; nothing is open then.</exception>
    public async Task<TapImage> OpenAsync(int processId, int minor, TapOpening opening, CancellationToken cancellationToken)
    {
        TapOpenFlags flags = opening.Flags
            | (opening.Secondary is null ? 0 : TapOpenFlags.Secondary)
            | (opening.ParentMinor is null ? 0 : TapOpenFlags.ReuseParent)
            | (opening.LogPath is null ? 0 : TapOpenFlags.AddLog)
            | (opening.Key is null ? 0 : TapOpenFlags.Encrypted);
        TapMessage request = new(TapMessageType.Open, minor)
        {
            Flags = flags,
            DeviceNumber = minor,
            Path = opening.Arguments,
            ParentDeviceNumber = opening.ParentMinor ?? -1,
            RequestTimeoutSeconds = opening.RequestTimeoutSeconds,
            Secondary = opening.Secondary ?? "",
        };
        byte[] following = [.. TapMessage.LogPath(opening.LogPath), .. TapMessage.Key(opening.Key)];
        try
        {
            TapMessage answer = await CallAsync(processId, request, following, OperationDeadline, cancellationToken);
            return new TapImage((long)answer.Sectors * answer.SectorSizeBytes, (int)answer.SectorSizeBytes, (answer.ImageInfo & 2) != 0);
        }
        finally
        {
            CryptographicOperations.ZeroMemory(following);
        }
    }

    /// <summary>Holds the disk's I/O, finishes what is in flight, and closes the image files.</summary>
    public Task PauseAsync(int processId, int minor, CancellationToken cancellationToken) =>
        PauseAsync(processId, minor, OperationDeadline, cancellationToken);

    public Task PauseAsync(int processId, int minor, TimeSpan deadline, CancellationToken cancellationToken) =>
        RepeatWhileBusyAsync(processId, new TapMessage(TapMessageType.Pause, minor), deadline, cancellationToken);

    /// <param name="arguments">Another <c>type:path</c> (after a snapshot), or null to open the same again.</param>
    /// <param name="secondary">Starts a mirror; <c>null</c> as text removes it; null leaves it.</param>
    public Task ResumeAsync(int processId, int minor, string? arguments, string? secondary, CancellationToken cancellationToken) =>
        ResumeAsync(processId, minor, arguments, secondary, null, cancellationToken);

    /// <param name="logPath">A changed-block log that the tapdisk is to keep, or null.</param>
    public Task ResumeAsync(
        int processId, int minor, string? arguments, string? secondary, string? logPath, CancellationToken cancellationToken) =>
        CallAsync(
            processId,
            new TapMessage(TapMessageType.Resume, minor)
            {
                Flags = (secondary is null ? 0 : TapOpenFlags.Secondary) | (logPath is null ? 0 : TapOpenFlags.AddLog),
                Path = arguments ?? "",
                Secondary = secondary ?? "",
            },
            TapMessage.LogPath(logPath),
            OperationDeadline,
            cancellationToken);

    /// <param name="force">Kills the process when it does not answer, as the field's <c>-f</c> does; what was not flushed may be
    /// lost.</param>
    public Task CloseAsync(int processId, int minor, bool force, CancellationToken cancellationToken) =>
        CloseAsync(processId, minor, force, OperationDeadline, cancellationToken);

    public async Task CloseAsync(int processId, int minor, bool force, TimeSpan deadline, CancellationToken cancellationToken)
    {
        TapMessage request = new(force ? TapMessageType.ForceShutdown : TapMessageType.Close, minor);
        await RepeatWhileBusyAsync(processId, request, deadline, cancellationToken);
    }

    /// <summary>Every process and minor of the folder. Sockets of dead processes are removed on the way.</summary>
    public async Task<IReadOnlyList<TapEntry>> ListAsync(CancellationToken cancellationToken)
    {
        List<TapEntry> entries = [];
        foreach (int processId in ProcessIds())
        {
            try
            {
                IReadOnlyList<TapEntry> own = await ListProcessAsync(processId, cancellationToken);
                entries.AddRange(own.Count == 0 ? [new TapEntry(processId, null, TapState.Running, null)] : own);
            }
            catch (TapException e) when (e.ErrnoNumber is TapException.NoSuchProcess or TapException.ProtocolError)
            {
                if (!IsTapdisk(processId))
                    RemoveSocketsOf(processId);
            }
        }

        HashSet<int?> attached = [.. entries.Select(static entry => entry.Minor)];
        IEnumerable<int> free = Minors().Where(minor => !attached.Contains(minor));
        entries.AddRange(free.Select(static minor => new TapEntry(null, minor, TapState.Running, null)));
        return entries;
    }

    /// <summary>The disks of one process.</summary>
    public async Task<IReadOnlyList<TapEntry>> ListProcessAsync(int processId, CancellationToken cancellationToken) =>
        await ExchangeAsync(processId, QueryDeadline, async (connection, token) =>
        {
            await connection.SendAsync(new TapMessage(TapMessageType.List, -1), default, token);
            List<TapEntry> entries = [];
            while (entries.Count <= MinorCount)
            {
                TapMessage answer = Checked(await connection.ReceiveAsync(token), TapMessageType.ListResponse);
                if (answer.ListCount == 0)
                    return entries;
                entries.Add(new TapEntry(processId, answer.ListMinor, answer.ListState, answer.Path.Length == 0 ? null : answer.Path));
            }

            throw new TapException(TapException.ProtocolError, $"tapdisk {processId} lists more than {MinorCount} disks");
        }, cancellationToken);

    public async Task<TapStats> StatsAsync(int processId, int minor, CancellationToken cancellationToken) =>
        await ExchangeAsync(processId, QueryDeadline, async (connection, token) =>
        {
            await connection.SendAsync(new TapMessage(TapMessageType.Stats, minor), default, token);
            TapMessage header = Checked(await connection.ReceiveAsync(token), TapMessageType.StatsResponse);
            string json = Encoding.UTF8.GetString(await connection.ReceiveBytesAsync((long)header.FollowingBytes, token));
            return StatsOf(json);
        }, cancellationToken);

    /// <summary>One of our extension verbs: JSON there, JSON back.</summary>
    /// <exception cref="TapException">ENOTSUP when the tapdisk is not ours; otherwise what the verb answered.</exception>
    internal async Task<JsonDocument> ExtensionAsync(
        int processId, int minor, ReadOnlyMemory<byte> json, TimeSpan deadline, CancellationToken cancellationToken)
    {
        (JsonDocument answer, IDisposable connection) = await OpenExtensionAsync(processId, minor, json, deadline, cancellationToken);
        connection.Dispose();
        return answer;
    }

    /// <summary>The same for a verb whose effect lasts as long as the connection, which is the caller's to end.</summary>
    internal async Task<(JsonDocument Answer, IDisposable Connection)> OpenExtensionAsync(
        int processId, int minor, ReadOnlyMemory<byte> json, TimeSpan deadline, CancellationToken cancellationToken)
    {
        if (json.Length > MaximumFollowingBytes)
        {
            throw new TapException(
                (int)Errno.EINVAL, $"a request of {json.Length} bytes is longer than {MaximumFollowingBytes}; nothing was sent");
        }

        return await OpenExchangeAsync(processId, deadline, async (connection, token) =>
        {
            TapMessage answer;
            try
            {
                await connection.SendAsync(
                    new TapMessage(TapMessageType.Extension, minor) { FollowingBytes = (ulong)json.Length }, json, token);
                answer = await connection.ReceiveAsync(token);
            }
            catch (SocketException e) when (e.SocketErrorCode is SocketError.ConnectionReset or SocketError.Shutdown)
            {
                throw new TapException(TapException.NotSupported, $"tapdisk {processId} does not know our extensions", e);
            }

            if (answer.Type == TapMessageType.Error && answer.ErrorText.Length == 0)
                throw new TapException(TapException.NotSupported, $"tapdisk {processId} does not know our extensions");
            Checked(answer, TapMessageType.ExtensionResponse);
            return ParseJson(await connection.ReceiveBytesAsync((long)answer.FollowingBytes, token));
        }, cancellationToken);
    }

    private static TapStats StatsOf(string json)
    {
        using JsonDocument parsed = ParseJson(Encoding.UTF8.GetBytes(json));
        return new TapStats(json, Number("nbd_mirror_failed") != 0, Number("reqs_outstanding"));

        long Number(string name) =>
            parsed.RootElement.ValueKind == JsonValueKind.Object && parsed.RootElement.TryGetProperty(name, out JsonElement value)
            && value.ValueKind == JsonValueKind.Number && value.TryGetInt64(out long number) ? number : 0;
    }

    private static JsonDocument ParseJson(ReadOnlyMemory<byte> bytes)
    {
        try
        {
            return JsonDocument.Parse(bytes);
        }
        catch (JsonException e)
        {
            throw new TapException(TapException.ProtocolError, $"the tapdisk answered something that is not JSON: {e.Message}", e);
        }
    }

    private static TapMessage Checked(TapMessage answer, TapMessageType expected)
    {
        bool carriesError = answer.Type is TapMessageType.Error or TapMessageType.AttachResponse or TapMessageType.PauseResponse
            or TapMessageType.ResumeResponse or TapMessageType.CloseResponse or TapMessageType.DetachResponse;
        if (answer.Type == TapMessageType.Error || (carriesError && answer.Error != 0))
        {
            int errno = Math.Abs(answer.Error);
            string text = answer.ErrorText.Length == 0 ? $"tapdisk answered errno {errno}" : answer.ErrorText;
            throw new TapException(errno == 0 ? (int)Errno.EIO : errno, text);
        }

        if (answer.Type != expected)
            throw new TapException(TapException.ProtocolError, $"the tapdisk answered {answer.Type} instead of {expected}");
        return answer;
    }

    private Task<TapMessage> CallAsync(int processId, TapMessage request, TimeSpan deadline, CancellationToken cancellationToken) =>
        CallAsync(processId, request, default, deadline, cancellationToken);

    private async Task<TapMessage> CallAsync(
        int processId, TapMessage request, ReadOnlyMemory<byte> following, TimeSpan deadline, CancellationToken cancellationToken) =>
        await ExchangeAsync(processId, deadline, async (connection, token) =>
        {
            await connection.SendAsync(request, following, token);
            TapMessageType expected = request.Type == TapMessageType.ForceShutdown ? TapMessageType.CloseResponse : request.Type + 1;
            return Checked(await connection.ReceiveAsync(token), expected);
        }, cancellationToken);

    // The field's clients repeat pause and close while the disk is still draining.
    private async Task RepeatWhileBusyAsync(
        int processId, TapMessage request, TimeSpan deadline, CancellationToken cancellationToken) =>
        await WithDeadlineAsync(deadline, $"tapdisk {processId} stayed busy", async token =>
        {
            while (true)
            {
                try
                {
                    return await CallAsync(processId, request, deadline, token);
                }
                catch (TapException e) when (e.ErrnoNumber is TapException.Busy or TapException.TryAgain or TapException.Interrupted)
                {
                    await Task.Delay(RetryDelay, token);
                }
            }
        }, cancellationToken);

    private async Task<T> ExchangeAsync<T>(
        int processId, TimeSpan deadline, Func<TapConnection, CancellationToken, Task<T>> exchange, CancellationToken cancellationToken)
    {
        (T answer, IDisposable connection) = await OpenExchangeAsync(processId, deadline, exchange, cancellationToken);
        connection.Dispose();
        return answer;
    }

    private async Task<(T Answer, IDisposable Connection)> OpenExchangeAsync<T>(
        int processId, TimeSpan deadline, Func<TapConnection, CancellationToken, Task<T>> exchange, CancellationToken cancellationToken) =>
        await WithDeadlineAsync(deadline, $"tapdisk {processId} did not answer", async token =>
        {
            TapConnection connection = await TapConnection.OpenAsync(ControlSocketPath(processId), token);
            try
            {
                return (await exchange(connection, token), (IDisposable)connection);
            }
            catch (SocketException e)
            {
                connection.Dispose();
                throw new TapException(TapException.ProtocolError, $"tapdisk {processId} broke the connection: {e.Message}", e);
            }
            catch
            {
                connection.Dispose();
                throw;
            }
        }, cancellationToken);

    private static async Task<T> WithDeadlineAsync<T>(
        TimeSpan deadline, string because, Func<CancellationToken, Task<T>> body, CancellationToken cancellationToken)
    {
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
        limit.CancelAfter(deadline);
        try
        {
            return await body(limit.Token);
        }
        catch (OperationCanceledException e) when (!cancellationToken.IsCancellationRequested)
        {
            throw new TapException(TapException.TimedOut, $"{because} within {deadline.TotalSeconds:0} s", e);
        }
    }

    private async Task<bool> AnswersAsync(int processId, CancellationToken cancellationToken)
    {
        if (!File.Exists(ControlSocketPath(processId)))
            return false;
        try
        {
            TapMessage answer = await CallAsync(processId, new TapMessage(TapMessageType.Pid, 0), QueryDeadline, cancellationToken);
            return answer.ProcessId == processId;
        }
        catch (TapException e) when (e.ErrnoNumber == TapException.NoSuchProcess)
        {
            return false; // The socket's name is there before anybody listens on it.
        }
    }

    private async Task<SafeFileHandle> LockMinorsAsync(CancellationToken cancellationToken)
    {
        string folder = Path.Combine(ControlDirectory, "tapdisk");
        Directory.CreateDirectory(folder);
        return await WithDeadlineAsync(QueryDeadline, $"the lock of {folder} was not free", async token =>
        {
            while (true)
            {
                if (Posix.TryLockDirectory(folder) is { } gate)
                    return gate;
                await Task.Delay(5, token);
            }
        }, cancellationToken);
    }

    private IEnumerable<int> ProcessIds() => Numbers(ControlDirectory, "ctl");

    private IEnumerable<int> Minors() => Numbers(Path.Combine(ControlDirectory, "tapdisk"), "tapdisk-");

    private static IEnumerable<int> Numbers(string folder, string prefix)
    {
        if (!Directory.Exists(folder))
            return [];
        return Directory.EnumerateFileSystemEntries(folder, prefix + "*")
            .Select(path => Path.GetFileName(path)[prefix.Length..])
            .Select(static text => int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int number) ? number : -1)
            .Where(static number => number >= 0)
            .Order()
            .ToList();
    }

    // A process id may have been reused by something else since: only a tapdisk's own name keeps the sockets.
    private static bool IsTapdisk(int processId) =>
        ProcessTable.IsAlive(processId) && ProcessTable.NameOf(processId).StartsWith("tapdisk", StringComparison.Ordinal);

    private void RemoveSocketsOf(int processId)
    {
        File.Delete(ControlSocketPath(processId));
        foreach (string prefix in (string[])["nbd", "nbd-old", "nbdserver", "nbdserver-new", "nbdclient"])
        {
            foreach (string path in Directory.EnumerateFileSystemEntries(ControlDirectory, $"{prefix}{processId}.*"))
                File.Delete(path);
        }

        File.Delete(NbdClientSocketPath(processId));
    }
}
