// What there is of one guest in STATE/guests: ID.json, its record, durable before its process is started; ID.lock, held by the process as long
// as it lives, with its number in it, so that a VM never has two; ID.sock, by which it is told what to do; ID.log, what it says.
using System.Globalization;
using System.Text.Json;
using Platform;

namespace Xenops.Guests;

internal sealed record GuestRecord(Vm Vm, IReadOnlyList<GuestDisk> Disks);

internal sealed record GuestFiles(string Folder, string Id)
{
    public string Record => Path.Combine(Folder, Id + ".json");

    public string Lock => Path.Combine(Folder, Id + ".lock");

    public string Socket => Path.Combine(Folder, Id + ".sock");

    public string Log => Path.Combine(Folder, Id + ".log");

    public bool IsAlive => FileLock.IsHeld(Lock);

    /// <summary>0 when the lock says nothing.</summary>
    public int ProcessId => int.TryParse(FileLock.Read(Lock), NumberStyles.None, CultureInfo.InvariantCulture, out int id) ? id : 0;

    public static GuestFiles OfRecord(string path) => new(Path.GetDirectoryName(path)!, Path.GetFileNameWithoutExtension(path));

    /// <exception cref="IOException">It is not there, or is no record.</exception>
    public GuestRecord ReadRecord()
    {
        try
        {
            return JsonSerializer.Deserialize<GuestRecord>(File.ReadAllText(Record), Json.Options) ?? throw new IOException($"{Record} is empty");
        }
        catch (JsonException e)
        {
            throw new IOException($"{Record} is no guest's record: {e.Message}", e);
        }
    }

    /// <summary>Durable when this returns.</summary>
    public void WriteRecord(GuestRecord record)
    {
        Directory.CreateDirectory(Folder);
        string temporary = Record + ".new";
        using (FileStream file = new(temporary, FileMode.Create))
        {
            JsonSerializer.Serialize(file, record, Json.Options);
            file.Flush(flushToDisk: true);
        }

        File.Move(temporary, Record, overwrite: true);
        Posix.SyncDirectory(Folder);
    }

    /// <summary>Of a guest that is dead.</summary>
    public void Delete()
    {
        foreach (string path in (string[])[Socket, Log, Lock, Record])
            File.Delete(path);
    }
}
