using System.Text;
using Platform;

namespace Xapi.Server;

/// <summary>Small files that are there whole or not at all, readable by their owner only.</summary>
internal static class DurableFile
{
    public static void Write(string path, string text)
    {
        string temporary = $"{path}.new";
        FileStreamOptions options = new()
        {
            Mode = FileMode.Create,
            Access = FileAccess.Write,
            UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
        };
        File.Delete(temporary); // The mode counts only for a file that is made here.
        using (FileStream stream = new(temporary, options))
        {
            stream.Write(Encoding.UTF8.GetBytes(text));
            stream.Flush(flushToDisk: true);
        }

        File.Move(temporary, path, overwrite: true);
        Posix.SyncDirectory(Path.GetDirectoryName(Path.GetFullPath(path))!);
    }
}
