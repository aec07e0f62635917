// What a check's body works with: a plugin with an SR of its own in a private folder, a random source that depends on the seed and the
// check alone, and the verbs that checks share. Nothing of it is outside its folder but the processes, which carry its mark.
using Platform;
using SrCheck.Checks;
using SrCheck.Plugins;

namespace SrCheck;

internal sealed class World(IPluginUnderTest plugin, WorldPlace place, int seed) : IAsyncDisposable
{
    public const long SmallBytes = 8L << 20;
    public const string SrName = "sr-check's SR";
    public const string SrDescription = "made by sr-check; it may be deleted";

    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(5);
    private readonly List<Volume> made = [];
    private readonly Lock gate = new();
    private readonly Dictionary<string, PluginRefusalException> refusals = [];
    private (Volume Volume, DiskContent Content)? standing;

    public IPluginUnderTest Plugin => plugin;

    public V3Plugin V3 => (V3Plugin)plugin;

    public V1Plugin V1 => (V1Plugin)plugin;

    public WorldPlace Place => place;

    public Random Random { get; private set; } = new(seed);

    public bool IsAttached { get; private set; }

    /// <summary>
    /// A disk with something on it that lives as long as the world: for checks that change nothing, or put back what they change.
    /// </summary>
    public async Task<(Volume Volume, DiskContent Content)> StandingAsync()
    {
        if (standing is { } there)
            return there;
        Volume volume = await plugin.CreateAsync("standing", "", SmallBytes);
        DiskContent content = new();
        await WriteAsync(volume, content);
        standing = (volume, content);
        return standing.Value;
    }

    public void Begin(string checkId) => Random = new Random(unchecked(seed * 31 + StableHash(checkId)));

    public async Task SetUpAsync(long sizeBytes = 0)
    {
        await plugin.CreateSrAsync(sizeBytes);
        await plugin.AttachSrAsync();
        IsAttached = true;
    }

    public async Task<Volume> VolumeAsync(long sizeBytes = SmallBytes, string name = "disk", string description = "")
    {
        Volume volume = await plugin.CreateAsync(name, description, sizeBytes);
        Track(volume);
        return volume;
    }

    public async Task<Volume> SnapshotAsync(Volume volume) => Track(await plugin.SnapshotAsync(volume));

    public async Task<Volume> CloneAsync(Volume volume) => Track(await plugin.CloneAsync(volume));

    public Volume Track(Volume volume)
    {
        lock (gate)
            made.Add(volume);
        return volume;
    }

    /// <summary>A disk with something on it, and what.</summary>
    public async Task<(Volume Volume, DiskContent Content)> FilledAsync(long sizeBytes = SmallBytes, int blocks = 12)
    {
        Volume volume = await VolumeAsync(sizeBytes);
        DiskContent content = new();
        await WriteAsync(volume, content, blocks);
        return (volume, content);
    }

    public Task WriteAsync(Volume volume, DiskContent content, int blocks = 12) =>
        UseAsync(volume, isWritable: true, device => content.ScatterAsync(device, Random, blocks));

    public Task VerifyAsync(Volume volume, DiskContent content, string where) =>
        UseAsync(volume, isWritable: false, device => content.VerifyAsync(device, where));

    /// <summary>Attach, activate, use, deactivate, detach; what the use throws comes first.</summary>
    public async Task UseAsync(Volume volume, bool isWritable, Func<IBlockDevice, Task> use)
    {
        IReadOnlyList<Access> ways = await plugin.AttachAsync(volume, isWritable);
        try
        {
            await plugin.ActivateAsync(volume, isWritable);
            await using IBlockDevice device = await AttachedDisk.OpenAsync(ways, isWritable);
            await use(device);
        }
        catch
        {
            await LetGoAsync(volume);
            throw;
        }

        await plugin.DeactivateAsync(volume);
        await plugin.DetachAsync(volume);
    }

    /// <summary>The call must be refused, under one of these numbers when any are given.</summary>
    public static async Task<PluginRefusalException> RefusedAsync(string what, Func<Task> call, params int[] numbers)
    {
        try
        {
            await call();
        }
        catch (PluginRefusalException refusal)
        {
            Seen.That(
                numbers.Length == 0 || (refusal.Number is { } number && numbers.Contains(number)),
                $"{what} is refused as {refusal.Code}, not as {string.Join(" or ", numbers.Select(ErrorNumbers.Describe))}");
            return refusal;
        }

        throw new CheckFailedException($"{what} is not refused");
    }

    /// <summary>As <see cref="RefusedAsync"/>, asked once in this world: several checks look at one refusal.</summary>
    public async Task<PluginRefusalException> RefusalOnceAsync(string what, Func<Task> call) =>
        refusals.TryGetValue(what, out PluginRefusalException? refusal)
            ? refusal
            : refusals[what] = await RefusedAsync(what.Replace('-', ' '), call);

    /// <summary>A yes or a well-formed no: what a call may be that the contract says nothing about.</summary>
    public static async Task AnsweredAsync(Func<Task> call)
    {
        try
        {
            await call();
        }
        catch (PluginRefusalException)
        {
            // A no is an answer.
        }
    }

    /// <exception cref="NotApplicableException">The SR's files are not in a folder that the kit knows.</exception>
    public void NeedsStore()
    {
        if (!place.HasStore)
            throw new NotApplicableException($"the SR is not in a folder of the kit's ({WorldPlace.Placeholder} in --device-config)");
    }

    public async Task<bool> IsListedAsync(Volume volume) =>
        (await plugin.ScanAsync()).Any(v => v.Key == volume.Key);

    /// <summary>Waits for processes that end by themselves; those that stay.</summary>
    public async Task<IReadOnlyList<int>> ProcessesAsync()
    {
        long end = Environment.TickCount64 + (long)Patience.TotalMilliseconds;
        while (true)
        {
            IReadOnlyList<int> alive = MarkedProcesses.Find(place.Mark);
            if (alive.Count == 0 || Environment.TickCount64 > end)
                return alive;
            await Task.Delay(20);
        }
    }

    /// <summary>Takes away what the check made, as far as the plugin lets it.</summary>
    /// <returns>False when the world is not as it was before.</returns>
    public async Task<bool> TidyAsync(Volume? keep = null)
    {
        List<Volume> volumes;
        lock (gate)
        {
            volumes = [.. made.Where(v => v != keep)];
            made.RemoveAll(volumes.Contains);
        }

        bool isClean = true;
        foreach (Volume volume in Enumerable.Reverse(volumes))
        {
            try
            {
                await plugin.DestroyAsync(volume);
            }
            catch (PluginRefusalException e) when (e.Number == 144)
            {
                // The check destroyed it.
            }
            catch (Exception e) when (e is PluginRefusalException or PluginBrokenException)
            {
                isClean = false;
            }
        }

        return isClean;
    }

    public async ValueTask DisposeAsync()
    {
        plugin.Process.Settings = plugin.Process.Settings with { Killed = CancellationToken.None, SearchPath = null };
        if (IsAttached && !place.IsDisposable)
            await LeavePolitelyAsync();
        await plugin.DisposeAsync();
        MarkedProcesses.End(place.Mark);
        place.Delete();
    }

    private async Task LeavePolitelyAsync()
    {
        try
        {
            foreach (Volume volume in await plugin.ScanAsync())
            {
                await LetGoAsync(volume);
                await plugin.DestroyAsync(volume);
            }

            await plugin.DetachSrAsync();
            await plugin.DestroySrAsync();
        }
        catch (Exception e) when (e is PluginRefusalException or PluginBrokenException or CheckFailedException)
        {
            // What cannot be taken away politely goes with the folder and the processes.
        }
    }

    public async Task LetGoAsync(Volume volume)
    {
        try
        {
            await plugin.DeactivateAsync(volume);
            await plugin.DetachAsync(volume);
        }
        catch (Exception e) when (e is PluginRefusalException or PluginBrokenException)
        {
            // An undo: the first error is the one to tell.
        }
    }

    private static int StableHash(string text)
    {
        int hash = 17;
        foreach (char c in text)
            hash = unchecked(hash * 31 + c);
        return hash;
    }
}
