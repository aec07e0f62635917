// sr-gc doctor: the chains as trees, what is wrong with them, and what a collector would free.
using System.CommandLine;
using System.Globalization;
using Vhd;
using Vhd.Collect;
using VhdFolder;

namespace SrGc;

internal static class DoctorCommand
{
    public static Command Create()
    {
        Argument<DirectoryInfo> folder = new("FOLDER") { Description = "an SR folder (it has .sr.json)" };
        Option<bool> isMended = new("--mend") { Description = "mend what can be mended without a guess" };
        Option<bool> isJson = new("--json") { Description = "print one JSON value" };
        Command command = new("doctor", "Show the chains of an SR folder, what is wrong with them, and a safe plan to mend it.")
        {
            folder, isMended, isJson,
        };
        command.SetAction((result, cancellationToken) => RunAsync(
            result.GetRequiredValue(folder).FullName, result.GetValue(isMended), result.GetValue(isJson), cancellationToken));
        return command;
    }

    private static async Task<int> RunAsync(string path, bool isMended, bool isJson, CancellationToken cancellationToken)
    {
        ImageFolder folder = new(DiskFolder.Open(path).Path);
        ChainDoctor doctor = new(folder, new FolderUsers(folder.Path, DiskTap.FromEnvironment()));
        IReadOnlyList<string> mended = isMended ? await doctor.MendAsync(cancellationToken) : [];
        ChainReport report = await doctor.LookAsync(cancellationToken);
        if (isJson)
            Output.WriteJson(new Diagnosis(report, mended));
        else
            Print(report, mended);
        return report.Findings.Any(static finding => finding.Severity == VhdSeverity.Error) ? 1 : 0;
    }

    private static void Print(ChainReport report, IReadOnlyList<string> mended)
    {
        foreach (ChainImage image in report.Images)
            Console.Out.WriteLine(LineOf(image));
        foreach (string line in mended)
            Console.Out.WriteLine(line.StartsWith("not ", StringComparison.Ordinal) ? line : $"mended: {line}");
        foreach (ChainFinding finding in report.Findings)
        {
            string severity = finding.Severity.ToString().ToLowerInvariant();
            string mend = finding.Mend == Mend.None ? "" : " (--mend does)";
            Console.Out.WriteLine($"{severity}: {(finding.Key.Length == 0 ? report.Folder : finding.Key)}: {finding.Message}{mend}");
        }

        foreach (CollectStep step in report.Steps)
            Console.Out.WriteLine($"a collector would: {Output.TextOf(step)}");
        foreach ((string key, string why) in report.PutOff)
            Console.Out.WriteLine($"but not now: {key}: {why}");
        Console.Out.WriteLine(
            $"{report.Images.Count} images, deepest {report.Images.Select(static image => image.Depth).DefaultIfEmpty().Max()}, "
            + $"{report.Findings.Count(static finding => finding.Severity == VhdSeverity.Error)} errors, "
            + $"{report.Findings.Count(static finding => finding.Severity == VhdSeverity.Warning)} warnings; "
            + $"collecting frees about {Size(report.FreesBytes)}");
    }

    private static string LineOf(ChainImage image)
    {
        string users = image.OpenBy.Count == 0 ? "" : $", open by {string.Join(" and ", image.OpenBy)}";
        return $"{new string(' ', 2 * (image.Depth - 1))}{image.Key}  {Size(image.VirtualSizeBytes)}"
            + $", {Size(image.AllocatedBytes)} allocated"
            + $"{(image.IsHidden ? ", hidden" : "")}{(image.IsLeased ? ", leased" : "")}{users}";
    }

    private static string Size(long bytes) => bytes >= 10L << 30
        ? string.Create(CultureInfo.InvariantCulture, $"{bytes >> 30} GiB")
        : string.Create(CultureInfo.InvariantCulture, $"{(bytes + (1 << 20) - 1) >> 20} MiB");
}
