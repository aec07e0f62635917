// What a driver or plugin process finds in its environment: not ours, but a clean one (research/storage.md 3.1): PATH with the tools first, and what
// the integrator configured. The .NET location is passed on, because the shipped drivers are .NET programs and the runtime may live anywhere.
using System.Collections;
using System.Runtime.InteropServices;

namespace StorageAccess;

public static class DriverEnvironment
{
    private const string SystemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

    /// <summary>For ChildProcess: null removes one of our own variables.</summary>
    /// <param name="toolsFolder">Where <c>tap-ctl</c> and <c>vhd-util</c> are; comes first in PATH.</param>
    public static Dictionary<string, string?> Create(string toolsFolder, IReadOnlyDictionary<string, string> configured)
    {
        Dictionary<string, string?> environment = [];
        foreach (DictionaryEntry ours in Environment.GetEnvironmentVariables())
            environment[(string)ours.Key] = null;
        environment["PATH"] = $"{toolsFolder}:{SystemPath}";
        environment["DOTNET_ROOT"] = Path.GetFullPath(Path.Combine(RuntimeEnvironment.GetRuntimeDirectory(), "../../.."));
        foreach ((string name, string value) in configured)
            environment[name] = value;
        return environment;
    }
}
