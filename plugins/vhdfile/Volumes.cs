// Volume.*: changes of one volume, under the folder's lock.
using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using VhdFolder;

namespace VhdFile;

/// <summary>What <c>key.json</c> keeps.</summary>
internal sealed record VolumeRecord(string Name, string Description, Dictionary<string, string> Keys, bool IsSharable);

[JsonSerializable(typeof(VolumeRecord))]
internal sealed partial class VolumeJson : JsonSerializerContext;

internal static class Volumes
{
    private static readonly DiskTap Tap = DiskTap.FromEnvironment();

    public static async Task<JsonNode?> RunAsync(string script, Parameters p, CancellationToken cancellationToken)
    {
        DiskFolder folder = DiskFolder.Open(p.Text("sr"));
        if (script == "Volume.stat")
            return Write(folder, Find(folder, p.Text("key")));
        using IDisposable held = await folder.LockAsync(cancellationToken);
        if (script == "Volume.create")
            return Create(folder, p);
        Disk disk = Find(folder, p.Text("key"));
        VolumeRecord record = RecordOf(folder, disk.Key);
        switch (script)
        {
            case "Volume.snapshot" or "Volume.clone":
                return await ForkAsync(folder, disk, record, cancellationToken);
            case "Volume.destroy":
                await Tap.CheckClosedAsync(disk.Path, cancellationToken);
                folder.Delete(disk.Key);
                CollectorProcess.StartFor(folder, folder.Record.IsCollectorOff);
                return null;
            case "Volume.resize":
                await Tap.CheckClosedAsync(disk.Path, cancellationToken);
                folder.Resize(disk.Key, p.Number("new_size"));
                return null;
            case "Volume.compose":
                Disk parent = Find(folder, p.Text("key2"));
                await Tap.CheckClosedAsync(disk.Path, cancellationToken);
                await Tap.CheckClosedAsync(parent.Path, cancellationToken);
                folder.Compose(parent.Key, disk.Key);
                File.Delete(Path.Combine(folder.Path, parent.Key + ".json")); // A base has no name of its own.
                CollectorProcess.StartFor(folder, folder.Record.IsCollectorOff);
                return null;
            case "Volume.set":
                return Save(folder, disk.Key, record with { Keys = new(record.Keys) { [p.Text("k")] = p.Text("v") } });
            case "Volume.unset":
                return Save(folder, disk.Key, record with { Keys = new(record.Keys.Where(k => k.Key != p.Text("k"))) });
            case "Volume.set_name":
                return Save(folder, disk.Key, record with { Name = p.Text("new_name") });
            case "Volume.set_description":
                return Save(folder, disk.Key, record with { Description = p.Text("new_description") });
            default:
                throw new ScriptException("Unimplemented", script);
        }
    }

    public static JsonObject Write(DiskFolder folder, Disk disk)
    {
        VolumeRecord record = RecordOf(folder, disk.Key);
        JsonObject keys = [];
        foreach ((string name, string value) in record.Keys)
            keys[name] = value;
        return new JsonObject
        {
            ["key"] = disk.Key,
            ["uuid"] = disk.Key,
            ["name"] = record.Name,
            ["description"] = record.Description,
            ["read_write"] = true,
            ["sharable"] = record.IsSharable,
            ["virtual_size"] = disk.VirtualSizeBytes,
            ["physical_utilisation"] = disk.PhysicalSizeBytes,
            ["uri"] = new JsonArray(Datapaths.UriOf(folder, disk)),
            ["keys"] = keys,
        };
    }

    private static JsonObject Create(DiskFolder folder, Parameters p)
    {
        Disk disk = folder.Create(Guid.NewGuid().ToString(), p.Number("size"));
        Save(folder, disk.Key, new VolumeRecord(p.Text("name"), p.Text("description"), [], p.Text("sharable") == "true"));
        return Write(folder, disk);
    }

    private static async Task<JsonNode?> ForkAsync(DiskFolder folder, Disk disk, VolumeRecord record, CancellationToken cancellationToken)
    {
        Disk copy = await Tap.WhilePausedAsync(disk.Path, () => folder.Fork(disk.Key, Guid.NewGuid().ToString()), cancellationToken);
        Save(folder, copy.Key, record);
        CollectorProcess.StartFor(folder, folder.Record.IsCollectorOff);
        return Write(folder, copy);
    }

    private static Disk Find(DiskFolder folder, string key) =>
        folder.Has(key) ? folder.Find(key) : throw new ScriptException("Volume_does_not_exist", key);

    private static VolumeRecord RecordOf(DiskFolder folder, string key)
    {
        string path = Path.Combine(folder.Path, key + ".json");
        try
        {
            VolumeRecord? record = File.Exists(path)
                ? JsonSerializer.Deserialize(File.ReadAllText(path), VolumeJson.Default.VolumeRecord)
                : null;
            return record ?? new VolumeRecord("", "", [], false);
        }
        catch (FileNotFoundException)
        {
            return new VolumeRecord("", "", [], false); // The volume went meanwhile.
        }
        catch (JsonException e)
        {
            Console.Error.WriteLine($"{path} is damaged and counts as empty: {e.Message}");
            return new VolumeRecord("", "", [], false);
        }
    }

    private static JsonNode? Save(DiskFolder folder, string key, VolumeRecord record)
    {
        folder.WriteFile(key + ".json", JsonSerializer.Serialize(record, VolumeJson.Default.VolumeRecord));
        return null;
    }
}
