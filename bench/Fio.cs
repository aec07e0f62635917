using System.Diagnostics;
using System.Globalization;
using System.Text.Json.Nodes;

namespace Bench;

internal sealed record Load(string Name, string Pattern, string BlockSize, int Depth);

/// <param name="P50">Microseconds, as the others.</param>
internal readonly record struct FioRun(double PerSecond, double Requests, double P50, double P99, double Max, double CpuSeconds);

/// <summary>fio's NBD engine as the guest.</summary>
internal static class Fio
{
    public static FioRun Run(string uri, Load load, double seconds, long sizeBytes) => ResultOf(Start(uri, load, seconds, sizeBytes), load);

    public static Process Start(string uri, Load load, double seconds, long sizeBytes)
    {
        ProcessStartInfo start = new("fio") { RedirectStandardOutput = true, RedirectStandardError = true };
        string milliseconds = (seconds * 1000).ToString("f0", CultureInfo.InvariantCulture);
        string[] arguments =
        [
            "--name=guest", "--ioengine=nbd", $"--uri={uri}", $"--rw={load.Pattern}", $"--bs={load.BlockSize}", $"--iodepth={load.Depth}",
            $"--size={sizeBytes}", "--time_based", $"--runtime={milliseconds}ms", "--norandommap", "--randrepeat=0", "--output-format=json",
            "--percentile_list=50:99",
        ];
        foreach (string argument in arguments)
            start.ArgumentList.Add(argument);
        return Process.Start(start)!;
    }

    /// <exception cref="InvalidOperationException">The guest had an error.</exception>
    public static FioRun ResultOf(Process fio, Load load)
    {
        using Process owned = fio;
        Task<string> errors = fio.StandardError.ReadToEndAsync();
        string text = fio.StandardOutput.ReadToEnd();
        fio.WaitForExit();
        int start = text.IndexOf('{', StringComparison.Ordinal);
        JsonNode? job = start < 0 ? null : JsonNode.Parse(text[start..])!["jobs"]![0];
        if (fio.ExitCode != 0 || job is null || (int)job["error"]! != 0)
            throw new InvalidOperationException($"fio failed on {load.Name}: {errors.Result}{text}");
        JsonNode side = job[load.Pattern.Contains("write", StringComparison.Ordinal) ? "write" : "read"]!;
        JsonNode latency = side["clat_ns"]!;
        return new FioRun(
            (double)side["iops"]!, (double)side["total_ios"]!, (double)latency["percentile"]!["50.000000"]! / 1e3,
            (double)latency["percentile"]!["99.000000"]! / 1e3, (double)latency["max"]! / 1e3, 0);
    }
}
