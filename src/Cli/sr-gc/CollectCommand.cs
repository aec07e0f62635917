using Platform;
using Vhd.Collect;
using VhdFolder;

namespace SrGc;

internal sealed record CollectArguments(bool IsDry, bool IsOnce, int WaitSeconds, long RateMebibytes, bool IsDetached, bool IsJson);

/// <summary>sr-gc FOLDER.</summary>
internal static class CollectCommand
{
    private const int OtherCollector = 3;
    private const long LeafLimitBytes = 20 << 20;

    public static async Task<int> RunAsync(string path, CollectArguments arguments, CancellationToken cancellationToken)
    {
        if (arguments.WaitSeconds < 0 || arguments.RateMebibytes is < 0 or > 1 << 20)
        {
            Console.Error.WriteLine("sr-gc: --wait and --rate are not negative, and --rate is at most 1048576");
            return 2;
        }

        ImageFolder folder = new(DiskFolder.Open(path).Path);
        FolderUsers users = new(folder.Path, DiskTap.FromEnvironment());
        if (arguments.IsDry)
            return await PlanAsync(folder, users, arguments.IsJson, cancellationToken);
        if (arguments.IsDetached)
            Posix.Detach();
        using FileLock? right = await CollectorProcess.TryBeginAsync(
            folder.Path, TimeSpan.FromSeconds(arguments.WaitSeconds), cancellationToken);
        if (right is null)
        {
            await Console.Error.WriteLineAsync($"sr-gc: another collector has {folder.Path}");
            return OtherCollector;
        }

        CollectorOptions options = new() { IsOneStep = arguments.IsOnce, RateBytesPerSecond = arguments.RateMebibytes << 20 };
        CollectResult result;
        using (StepLines progress = new(arguments.IsDetached))
            result = await new Collector(folder, users, options, progress).RunAsync(cancellationToken);
        Output.Tell(result.Steps, result.PutOff, arguments.IsJson);
        return 0;
    }

    /// <summary>The steps one after the other, each on what the ones before it leave. Takes no lock and makes no file.</summary>
    private static async Task<int> PlanAsync(ImageFolder folder, FolderUsers users, bool isJson, CancellationToken cancellationToken)
    {
        ImageForest forest = folder.Scan(await users.LookAsync(cancellationToken), LeafLimitBytes + 1);
        Dictionary<string, string> putOff = [];
        foreach (ImageNode node in forest.Nodes)
        {
            if (CollectPlan.For(forest, node.Key, LeafLimitBytes) is { WhyNot: { } why })
                putOff.Add(node.Key, why);
        }

        Output.Tell(CollectPlan.All(forest, LeafLimitBytes), putOff, isJson);
        return 0;
    }
}
