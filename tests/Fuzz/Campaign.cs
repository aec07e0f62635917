// One target, many inputs. The guide: every outcome has a class (where the error was thrown, or what the target says of the value); an
// input that makes a class which was not seen before is kept, and others are made from it.
using System.Diagnostics;
using System.Security.Cryptography;

namespace Fuzz;

/// <param name="Finding">What is wrong, or null.</param>
/// <param name="Input">The input that shows it.</param>
internal sealed record CampaignResult(long Executions, int Classes, TimeSpan Took, string? Finding, byte[]? Input);

internal sealed class Campaign(FuzzTarget target, int seed)
{
    private const int MaximumClasses = 4096;
    private const int MaximumKept = 512;
    private const int MaximumClassWords = 9;
    private static readonly TimeSpan HangLimit = TimeSpan.FromSeconds(2);

    private static readonly char[] Separators = [.. " ,.;:()[]{}'\"=/"];

    private readonly HashSet<string> classes = [];
    private readonly List<byte[]> corpus = [.. target.Seeds];
    private byte[] current = [];
    private long currentSince = long.MaxValue;

    /// <summary>Called from another thread with the input in which a parser hangs: nothing but the process's end stops it.</summary>
    public Action<byte[]>? OnHang { get; init; }

    /// <summary>Until the time is over, the executions are done, or the first finding.</summary>
    public async Task<CampaignResult> RunAsync(TimeSpan limit, long maximumExecutions)
    {
        Stopwatch watch = Stopwatch.StartNew();
        Mutator mutator = new(target, new Random(seed));
        using Timer watchdog = new(_ => CheckHang(), null, HangLimit / 4, HangLimit / 4);
        long executions = 0;
        foreach (byte[] good in target.Seeds)
        {
            executions++;
            if (await TryAsync(good) is { } finding)
                return new CampaignResult(executions, classes.Count, watch.Elapsed, "a good input: " + finding, good);
        }

        for (; executions < maximumExecutions && ((executions & 255) != 0 || watch.Elapsed < limit); executions++)
        {
            byte[] input = mutator.From(corpus);
            if (await TryAsync(input) is { } finding)
                return new CampaignResult(executions, classes.Count, watch.Elapsed, finding, input);
        }

        return new CampaignResult(executions, classes.Count, watch.Elapsed, null, null);
    }

    /// <returns>What is wrong, or null.</returns>
    public async Task<string?> TryAsync(byte[] input)
    {
        long before = GC.GetTotalAllocatedBytes();
        current = input;
        Volatile.Write(ref currentSince, Stopwatch.GetTimestamp());
        string kind;
        try
        {
            ValueTask<string> running = target.RunAsync(input);
            kind = "ok " + WordsOf(running.IsCompleted ? await running : await running.AsTask().WaitAsync(HangLimit));
        }
        catch (TimeoutException e) when (target.Expected.All(type => !type.IsInstanceOfType(e)))
        {
            return $"no answer within {HangLimit.TotalSeconds} s";
        }
        catch (FuzzFindingException e)
        {
            return e.Message;
        }
        catch (Exception e) when (target.Expected.Any(type => type.IsInstanceOfType(e)))
        {
            kind = SiteOf(e);
        }
        catch (Exception e)
        {
            return e.ToString(); // The finding that we are after: none of the errors that the parser promises.
        }
        finally
        {
            Volatile.Write(ref currentSince, long.MaxValue);
        }

        long allocated = GC.GetTotalAllocatedBytes() - before;
        if (allocated > target.AllocationLimitBytes + (64L * input.Length))
            return $"{allocated} bytes were allocated for {input.Length} ({kind})";
        Keep(kind, input);
        return null;
    }

    public static string NameOf(FuzzTarget target, byte[] input) =>
        $"{target.Name}-{Convert.ToHexStringLower(SHA256.HashData(input))[..12]}.bin";

    private void Keep(string kind, byte[] input)
    {
        if (classes.Count >= MaximumClasses || !classes.Add(kind))
            return;
        if (corpus.Count == MaximumKept)
            corpus.RemoveAt(target.Seeds.Count);
        corpus.Add(input);
    }

    // Numbers, hex digits and what is quoted from the input are not words: every input would be a class of its own.
    private static string WordsOf(string kind) =>
        string.Join(' ', kind.Split(Separators, StringSplitOptions.RemoveEmptyEntries).Where(static w => w.All(char.IsAsciiLetter)).Take(MaximumClassWords));

    // Where it was thrown is the branch that was taken; the words may be the input's.
    private static string SiteOf(Exception e)
    {
        StackFrame[] frames = new StackTrace(e, fNeedFileInfo: false).GetFrames();
        return $"{e.GetType().Name} "
            + string.Join(' ', frames.Take(3).Select(static frame => $"{frame.GetMethod()?.MetadataToken}+{frame.GetILOffset()}"));
    }

    private void CheckHang()
    {
        long since = Volatile.Read(ref currentSince);
        if (since != long.MaxValue && Stopwatch.GetElapsedTime(Math.Min(since, Stopwatch.GetTimestamp())) > 2 * HangLimit)
            OnHang?.Invoke(current);
    }
}
