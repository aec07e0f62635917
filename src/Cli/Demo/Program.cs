// ./demo: see Journey.cs for what it does.
using System.CommandLine;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text.Json.Nodes;
using Demo;
using Platform;
using Vhd;

Option<string?> disk = new("--disk") { Description = "a VHD of yours for the VM's disk; a copy is used, the file is not touched" };
Option<string> guest = new("--guest") { Description = "what runs in the VM", DefaultValueFactory = _ => "simulator" };
Option<string> rate = new("--rate") { Description = "limit of the disk copy per second, such as 64M; 0 is none", DefaultValueFactory = _ => "96M" };
Option<string> fault = new("--fault") { Description = "break something on the way: kill-destination-tapdisk", DefaultValueFactory = _ => "none" };
Option<string?> keep = new("--keep") { Description = "a folder in which the original, the source at switch-over and the arrived disk are kept" };
Option<bool> json = new("--json") { Description = "print one JSON object last, and no story" };
Option<bool> serve = new("--serve") { Description = "keep both pools up, print one JSON line for each, until SIGINT or SIGTERM" };
guest.AcceptOnlyFromAmong("simulator");
fault.AcceptOnlyFromAmong("none", "kill-destination-tapdisk");

RootCommand root = new(
    """
    A running VM moves from pool A to pool B while it writes; its bytes are verified.

    Examples:
      ./demo                                    the story, with progress
      ./demo --json                             one JSON object, for scripts
      ./demo --disk my.vhd --keep /tmp/arrived  your disk; compare it yourself afterwards
      ./demo --fault kill-destination-tapdisk   and what happens when the far side dies
      ./demo --serve                            two pools to play with
    """)
{
    disk, guest, rate, fault, keep, json, serve,
};
root.SetAction(async (parsed, cancellationToken) =>
{
    string folder = Directory.CreateTempSubdirectory("storage-demo-").FullName;
    using CancellationTokenSource stop = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
    using PosixSignalRegistration interrupted = Stop(PosixSignal.SIGINT, stop);
    using PosixSignalRegistration terminated = Stop(PosixSignal.SIGTERM, stop);
    try
    {
        JourneyOptions options = new(
            parsed.GetValue(disk), folder, ParseSize(parsed.GetValue(rate)!),
            parsed.GetValue(fault) == "none" ? Fault.None : Fault.KillDestinationTapdisk, parsed.GetValue(keep),
            parsed.GetValue(json) || parsed.GetValue(serve), Secret.Create().Reveal());
        return await RunAsync(options, parsed.GetValue(serve), parsed.GetValue(json), stop.Token);
    }
    catch (Exception e) when (e is VhdException or FormatException or FileNotFoundException or InvalidOperationException or XenApiException)
    {
        await Console.Error.WriteLineAsync($"demo: {e.Message}");
        if (parsed.GetValue(json))
            Console.WriteLine(new JsonObject { ["migrated"] = false, ["verified"] = false, ["error"] = e.Message }.ToJsonString());
        return 2;
    }
    catch (OperationCanceledException) when (stop.IsCancellationRequested)
    {
        return 130;
    }
    finally
    {
        Directory.Delete(folder, recursive: true);
    }
});
// No limit on the way out: two pools are stopped and their VMs powered off before this process ends.
return await root.Parse(args).InvokeAsync(new InvocationConfiguration { ProcessTerminationTimeout = null });

static PosixSignalRegistration Stop(PosixSignal signal, CancellationTokenSource stop) => PosixSignalRegistration.Create(signal, context =>
{
    context.Cancel = true;
    stop.Cancel();
});

static async Task<int> RunAsync(JourneyOptions options, bool serve, bool json, CancellationToken cancellationToken)
{
    Journey journey = new(options, new Narrator(options.IsQuiet));
    (Pool a, Pool b) = await journey.StartPoolsAsync(cancellationToken);
    JsonObject result;
    try
    {
        if (serve)
            return await ServeAsync(a, b, cancellationToken);
        journey.KeepSource();
        result = await journey.RunAsync(a, b, cancellationToken);
    }
    finally
    {
        await a.QuiesceAsync(); // A migration that is on its way needs both pools to unwind.
        await b.DisposeAsync();
        await a.DisposeAsync();
    }

    int exitCode = (int)result["exit_code"]!;
    if (json)
        Console.WriteLine(result.ToJsonString());
    else
        Console.WriteLine(Summary(result));
    return exitCode;
}

static async Task<int> ServeAsync(Pool a, Pool b, CancellationToken cancellationToken)
{
    foreach (Pool pool in (Pool[])[a, b])
    {
        Console.WriteLine(new JsonObject
        {
            ["pool"] = pool.Name,
            ["url"] = pool.Https,
            ["http"] = pool.Http,
            ["user"] = "root",
            ["password"] = pool.Password,
            ["state"] = pool.Folder,
        }.ToJsonString());
    }

    try
    {
        await Task.Delay(Timeout.Infinite, cancellationToken);
    }
    catch (OperationCanceledException)
    {
        // Asked to stop: that is how serving ends.
    }

    return 0;
}

static string Summary(JsonObject result) => (bool)result["migrated"]!
    ? $"migrated and {((bool)result["verified"]! ? "verified" : "NOT VERIFIED")}: {result["bytes_logical"]} bytes of disk, {result["bytes_sent"]} sent, "
        + $"the guest paused for {result["blackout_ms"]} ms, {result["leftovers"]} leftovers"
    : $"not migrated: the VM runs on the {result["vm_runs_on"]}, {result["writes_lost"]} of {result["writes_acknowledged"]} acknowledged writes lost, "
        + $"{result["leftovers"]} leftovers";

static long ParseSize(string text)
{
    int shift = char.ToUpperInvariant(text[^1]) switch { 'K' => 10, 'M' => 20, 'G' => 30, _ => 0 };
    string digits = shift == 0 ? text : text[..^1];
    return long.TryParse(digits, NumberStyles.None, CultureInfo.InvariantCulture, out long value) && value <= long.MaxValue >> shift
        ? value << shift
        : throw new FormatException($"--rate {text}: a number with K, M or G behind it was expected");
}
