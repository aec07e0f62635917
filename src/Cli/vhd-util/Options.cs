// Options that many verbs have.
using System.CommandLine;

namespace VhdUtil;

internal static class Options
{
    private const int BytesPerMebibyteShift = 20;

    public static Option<string> Name() => new("-n") { Description = "the image", Required = true };

    public static Option<bool> Json() => new("--json") { Description = "print one JSON value" };

    /// <summary>The field's drivers put it into every call.</summary>
    public static void AddCommon(Command command) =>
        command.Add(new Option<bool>("--debug") { Description = "accepted as the field's tool does", Hidden = true });

    // A count of MiB that overflows is a size that the library refuses.
    public static long Bytes(long mebibytes) =>
        Math.Abs(mebibytes) < 1L << 40 ? mebibytes << BytesPerMebibyteShift : long.MaxValue;

    public static long Mebibytes(long bytes) => bytes >> BytesPerMebibyteShift;
}
