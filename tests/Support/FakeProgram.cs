namespace Support;

/// <summary>A driver or plugin written by the test: a shell script, because what is tested is how programs are run.</summary>
public static class FakeProgram
{
    public static string Write(string path, string body)
    {
        Directory.CreateDirectory(Path.GetDirectoryName(path)!);
        string temporary = path + ".new";
        File.WriteAllText(temporary, $"#!/bin/bash\n{body}\n");
        File.SetUnixFileMode(temporary, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        File.Move(temporary, path, overwrite: true);
        return path;
    }
}
