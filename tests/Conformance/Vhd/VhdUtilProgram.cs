using Platform;
using Support;

namespace Conformance.VhdTests;

/// <summary>The built executable, run as a script runs it.</summary>
internal static class VhdUtilProgram
{
    // Beside our own folder in the build's output: .../bin/Conformance/release/ and .../bin/vhd-util/release/.
    public static string Path
    {
        get
        {
            string own = AppContext.BaseDirectory.TrimEnd('/');
            return System.IO.Path.Combine(own, "..", "..", "vhd-util", System.IO.Path.GetFileName(own), "vhd-util");
        }
    }

    public static Task<ChildResult> RunAsync(params string[] arguments) => Tool.RunAsync(Path, arguments);
}
