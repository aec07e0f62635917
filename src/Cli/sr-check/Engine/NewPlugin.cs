namespace SrCheck;

/// <summary>Writes a plugin to start from: one Python file under 150 lines that earns Bronze as it is.</summary>
internal static class NewPlugin
{
    private const UnixFileMode Mode =
        UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute | UnixFileMode.GroupRead | UnixFileMode.GroupExecute
        | UnixFileMode.OtherRead | UnixFileMode.OtherExecute;

    private static readonly string[] VolumeScripts =
    [
        "Plugin.Query", "SR.create", "SR.attach", "SR.detach", "SR.destroy", "SR.stat", "SR.ls", "Volume.create", "Volume.destroy",
        "Volume.snapshot", "Volume.clone", "Volume.resize", "Volume.stat", "Volume.set",
    ];

    private static readonly string[] DatapathScripts =
        ["Plugin.Query", "Datapath.attach", "Datapath.activate", "Datapath.deactivate", "Datapath.detach"];

    public static bool IsName(string name) =>
        name.Length is > 0 and <= 32 && char.IsAsciiLetterLower(name[0]) && name.All(static c => char.IsAsciiLetterLower(c)
            || char.IsAsciiDigit(c));

    /// <summary>The template's text, for this name.</summary>
    public static string Text(string name, bool isV1) =>
        Templates.Read(isV1 ? "v1.py" : "v3.py").Replace("@NAME@", name, StringComparison.Ordinal);

    /// <param name="text">The program; null for the template.</param>
    /// <returns>What sr-check is given as PLUGIN.</returns>
    /// <exception cref="IOException">It is there already, or cannot be written.</exception>
    public static string Write(string folder, string name, bool isV1, string? text = null)
    {
        text ??= Text(name, isV1);
        if (isV1)
            return WriteProgram(Path.Combine(folder, name + "SR"), text);
        string volume = Path.Combine(folder, "volume", $"org.xen.xapi.storage.{name}");
        string datapath = Path.Combine(folder, "datapath", name);
        string program = WriteProgram(Path.Combine(folder, name + ".py"), text);
        foreach (string script in VolumeScripts)
            Link(volume, script, program);
        foreach (string script in DatapathScripts)
            Link(datapath, script, program);
        return volume;
    }

    private static string WriteProgram(string path, string text)
    {
        Directory.CreateDirectory(Path.GetDirectoryName(path)!);
        using (StreamWriter file = new(new FileStream(path, FileMode.CreateNew, FileAccess.Write)))
            file.Write(text);
        File.SetUnixFileMode(path, Mode);
        return path;
    }

    private static void Link(string folder, string script, string program)
    {
        Directory.CreateDirectory(folder);
        File.CreateSymbolicLink(Path.Combine(folder, script), Path.GetRelativePath(folder, program));
    }
}
