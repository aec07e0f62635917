// fuzz: gives every parser of the product bad inputs. `fuzz --list` names the targets; `fuzz TARGET` runs one until its time is over or
// it finds something, and then writes the input to a file and prints the command that gives it again; `fuzz --all` runs every target in
// a process of its own, two at a time, and ends with one line: N passed, N failed.
using System.Diagnostics;
using System.Globalization;
using Fuzz;
using Fuzz.Targets;

const int Found = 1;
const int Usage = 2;

FuzzOptions? options = FuzzOptions.Parse(args);
if (options is null)
{
    Console.Error.WriteLine(FuzzOptions.Help);
    return Usage;
}

if (options.IsList)
{
    foreach (string name in FuzzTargets.Names)
        Console.WriteLine(name);
    return 0;
}

return options.IsAll ? await RunAllAsync(options) : await RunOneAsync(options);

static async Task<int> RunOneAsync(FuzzOptions options)
{
    if (FuzzTargets.Find(options.Target) is not { } target)
    {
        Console.Error.WriteLine($"fuzz: there is no target '{options.Target}'; --list names them");
        return Usage;
    }

    Campaign campaign = new(target, options.Seed)
    {
        OnHang = input =>
        {
            Console.WriteLine(Report(target, input, "it hangs"));
            Process.GetCurrentProcess().Kill(); // The thread that hangs can be ended in no other way.
        },
    };
    if (options.ReplayPath is { } path)
    {
        string? wrong = await campaign.TryAsync(await File.ReadAllBytesAsync(path));
        Console.WriteLine($"{target.Name}: {wrong ?? "nothing wrong"}");
        return wrong is null ? 0 : Found;
    }

    CampaignResult result = await campaign.RunAsync(options.Limit, options.Executions);
    Console.WriteLine(string.Create(
        CultureInfo.InvariantCulture,
        $"{target.Name}: {result.Executions} executions, {result.Classes} classes, {result.Took.TotalSeconds:0.0} s, seed {options.Seed}"));
    if (result.Finding is null)
        return 0;
    Console.WriteLine(Report(target, result.Input!, result.Finding));
    return Found;
}

static string Report(FuzzTarget target, byte[] input, string finding)
{
    string folder = Directory.CreateDirectory("fuzz-findings").FullName;
    string path = Path.Combine(folder, Campaign.NameOf(target, input));
    File.WriteAllBytes(path, input);
    return $"{target.Name}: FOUND {finding}\nreplay: ./dev fuzz {target.Name} --replay {path}";
}

static async Task<int> RunAllAsync(FuzzOptions options)
{
    int passed = 0;
    int failed = 0;
    await Parallel.ForEachAsync(
        FuzzTargets.Names.Where(static name => name != "canary"),
        new ParallelOptions { MaxDegreeOfParallelism = Math.Max(1, Environment.ProcessorCount) },
        async (name, token) =>
        {
            ProcessStartInfo start = new(Environment.ProcessPath!, [name, .. options.Forwarded]) { RedirectStandardOutput = true };
            using Process process = Process.Start(start)!;
            string output = await process.StandardOutput.ReadToEndAsync(token);
            await process.WaitForExitAsync(token);
            Console.Write(output);
            if (process.ExitCode == 0)
                Interlocked.Increment(ref passed);
            else
                Interlocked.Increment(ref failed);
        });
    Console.WriteLine($"fuzz: {passed} passed, {failed} failed");
    return failed == 0 ? 0 : Found;
}
