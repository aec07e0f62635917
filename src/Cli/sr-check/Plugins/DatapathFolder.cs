namespace SrCheck.Plugins;

/// <summary>
/// Where a volume's datapath scripts are: a folder that holds them itself, or one with a folder for each URI scheme.
/// </summary>
internal sealed class DatapathFolder(string folder)
{
    public bool Has(string uri, string script) => File.Exists(ScriptOf(uri, script));

    /// <exception cref="PluginRefusalException">Unimplemented: there is no such script for this scheme.</exception>
    public string PathOf(string uri, string script)
    {
        string path = ScriptOf(uri, script);
        return File.Exists(path) ? path : throw new PluginRefusalException(script, "Unimplemented", 38,
            $"there is no {path} for \"{uri}\"");
    }

    private string ScriptOf(string uri, string script)
    {
        if (File.Exists(Path.Combine(folder, "Datapath.attach")))
            return Path.Combine(folder, script);
        int end = uri.IndexOf("://", StringComparison.Ordinal);
        bool isPlain = end > 0 && !uri[..end].Contains('/', StringComparison.Ordinal);
        return Path.Combine(folder, isPlain ? uri[..end] : "none", script);
    }
}
