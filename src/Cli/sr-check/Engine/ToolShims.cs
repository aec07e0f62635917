// Tools that fail: programs of the storage tools' names that come first in PATH, and a PATH without those tools.
using System.Globalization;

namespace SrCheck;

/// <summary>What a tool does instead of its work.</summary>
internal enum ToolFault
{
    /// <summary>Takes a while, then works.</summary>
    Slow,

    /// <summary>Never ends, and ignores SIGTERM.</summary>
    Hang,

    /// <summary>Dies by SIGKILL before it did anything.</summary>
    Killed,

    /// <summary>Ends with EIO.</summary>
    Eio,

    /// <summary>Ends with ENOSPC.</summary>
    NoSpace,

    /// <summary>Succeeds, and prints half of what it should.</summary>
    CutOutput,

    /// <summary>Succeeds, and prints nonsense.</summary>
    GarbageOutput,

    /// <summary>Is not there.</summary>
    Missing,
}

internal static class ToolShims
{
    private const UnixFileMode Executable =
        UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute | UnixFileMode.GroupRead | UnixFileMode.GroupExecute;

    private static readonly string[] SystemFolders = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    private static readonly string[] Tools = ["tapdisk", "tap-ctl", "vhd-util", "td-util", "qemu-img", "cp"];

    /// <summary>
    /// Makes a folder of shims that have the fault and note in <c>struck</c> that they were run. Real tools are taken from
    /// <paramref name="toolsFolder"/>, then from the system.
    /// </summary>
    public static string Make(string parent, string toolsFolder, ToolFault fault)
    {
        string folder = Path.Combine(parent, "t-" + fault.ToString().ToLower(CultureInfo.InvariantCulture));
        Directory.CreateDirectory(folder);
        foreach (string tool in Tools)
        {
            string? real = new[] { toolsFolder }.Concat(SystemFolders).Select(f => Path.Combine(f, tool)).FirstOrDefault(File.Exists);
            if (real is null)
                continue;
            string path = Path.Combine(folder, tool);
            File.WriteAllText(path, $"#!/bin/sh\necho {tool} >> '{folder}/struck'\n{Body(fault, real)}\n");
            File.SetUnixFileMode(path, Executable);
        }

        return folder;
    }

    /// <summary>Whether a tool of the folder was run.</summary>
    public static bool HasStruck(string folder) => File.Exists(Path.Combine(folder, "struck"));

    /// <summary>A PATH that has everything of the system but these programs.</summary>
    public static string PathWithout(string parent, IReadOnlyCollection<string> programs)
    {
        string folder = Path.Combine(parent, "t-without");
        if (Directory.Exists(folder))
            return folder;
        Directory.CreateDirectory(folder);
        foreach (string system in SystemFolders.Where(Directory.Exists))
        {
            foreach (string program in Directory.EnumerateFiles(system))
            {
                string link = Path.Combine(folder, Path.GetFileName(program));
                if (!programs.Contains(Path.GetFileName(program)) && !Path.Exists(link))
                    File.CreateSymbolicLink(link, program);
            }
        }

        return folder;
    }

    private static string Body(ToolFault fault, string real) => fault switch
    {
        ToolFault.Slow => $"sleep 0.3\nexec '{real}' \"$@\"",
        ToolFault.Hang => "trap '' TERM\nwhile :; do sleep 1; done",
        ToolFault.Killed => "kill -9 $$",
        ToolFault.Eio => "echo 'Input/output error' >&2\nexit 5",
        ToolFault.NoSpace => "echo 'No space left on device' >&2\nexit 28",
        ToolFault.CutOutput => $"'{real}' \"$@\" | head -c 3\nexit 0",
        ToolFault.GarbageOutput => "printf '\\001\\377garbage = {{{ <<<\\n'\nexit 0",
        _ => "exit 127",
    };
}
