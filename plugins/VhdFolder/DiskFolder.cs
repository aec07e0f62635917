// An SR that is a folder of VHD files: <key>.vhd is a disk, a hidden VHD is a shared base that no user sees, .sr.json says what the SR is.
// Every change is made under the folder's flock; a fork that was cut off is finished or undone by the next holder (research/storage.md 4.5
// is the field's own algorithm).
using System.Text.Json;
using System.Text.Json.Serialization;
using Platform;
using Vhd;
using Vhd.Collect;

namespace VhdFolder;

/// <summary>What .sr.json keeps. A quota of 0 means the whole filesystem.</summary>
public sealed record FolderRecord(
    string Uuid, string Name, string Description, long QuotaBytes, bool MadeFolder, bool IsCollectorOff = false);

/// <summary>Written at compile time: reflection over one record costs a driver, which lives for one call, as much as starting does.</summary>
[JsonSerializable(typeof(FolderRecord))]
internal sealed partial class FolderJson : JsonSerializerContext;

/// <summary>A disk that users see. The file name of its parent is null for a flat one.</summary>
public sealed record Disk(string Key, string Path, long VirtualSizeBytes, long PhysicalSizeBytes, string? Parent);

public sealed class DiskFolder
{
    private const string RecordName = ".sr.json";
    private const int SectorBytes = 512;
    private const long LeafLimitBytes = 20 << 20;
    private const long LargestDiskBytes = 2040L << 30;

    private static readonly Dictionary<string, string> NobodyPutOff = [];

    private readonly ImageFolder images;

    private DiskFolder(string path, FolderRecord record)
    {
        Path = path;
        Record = record;
        images = new ImageFolder(path);
    }

    public string Path { get; }

    public FolderRecord Record { get; private set; }

    /// <summary>Makes the folder when its parent is there; one that holds disks or is an SR already is refused.</summary>
    public static DiskFolder Create(string path, FolderRecord record)
    {
        CheckPath(path);
        bool isThere = Directory.Exists(path);
        if (isThere && (File.Exists(System.IO.Path.Combine(path, RecordName)) || Directory.EnumerateFiles(path, "*.vhd").Any()))
            throw new DriverException(DriverException.Exists, $"{path} holds an SR or disks; it was left as it is");
        if (!isThere && !Directory.Exists(System.IO.Path.GetDirectoryName(path)))
            throw new DriverException(DriverException.SrUnavailable, $"the parent of {path} is not a folder");
        Directory.CreateDirectory(path);
        DiskFolder folder = new(path, record with { MadeFolder = !isThere });
        folder.WriteFile(RecordName, JsonSerializer.Serialize(folder.Record, FolderJson.Default.FolderRecord));
        return folder;
    }

    public static DiskFolder Open(string path)
    {
        CheckPath(path);
        string record = System.IO.Path.Combine(path, RecordName);
        if (!File.Exists(record))
            throw new DriverException(DriverException.SrUnavailable, $"{path} is not an SR: there is no {RecordName}");
        try
        {
            FolderRecord read = JsonSerializer.Deserialize(File.ReadAllText(record), FolderJson.Default.FolderRecord)
                ?? throw new JsonException("null");
            return new DiskFolder(path, read);
        }
        catch (JsonException e)
        {
            throw new DriverException(DriverException.SrUnavailable, $"{record} is damaged: {e.Message}");
        }
    }

    /// <summary>Held while the folder changes; whoever takes it cleans up after a holder that died.</summary>
    public Task<IDisposable> LockAsync(CancellationToken cancellationToken) =>
        CollectRecovery.LockAsync(images, new FolderUsers(images.Path, DiskTap.FromEnvironment()), cancellationToken);

    /// <summary>The disks, and the names of images that cannot be read: one bad file does not hide the others.</summary>
    public (IReadOnlyList<Disk> Disks, IReadOnlyList<string> Damaged) List()
    {
        List<Disk> disks = [];
        List<string> damaged = [];
        (IReadOnlySet<string> notDisks, IReadOnlySet<string> changing) = images.BetweenStates();
        foreach (string key in images.Keys())
        {
            try
            {
                VhdInfo info = images.ReadInfo(key);
                if (changing.Contains(key) || !(info.IsHidden || notDisks.Contains(key)))
                    disks.Add(DiskOf(PathOf(key), info));
            }
            catch (VhdException e) when (e.Error != VhdError.CannotOpen)
            {
                damaged.Add(key); // One that cannot be opened went since it was listed.
            }
            catch (FileNotFoundException)
            {
                // It went since it was opened.
            }
        }

        return (disks, damaged);
    }

    public Disk Find(string key)
    {
        string path = PathOf(key);
        if (!File.Exists(path))
            throw new DriverException(DriverException.VdiMissing, $"there is no disk {key} in {Path}");
        try
        {
            return DiskOf(path, VhdImage.ReadInfo(path));
        }
        catch (Exception e) when ((e is VhdException or FileNotFoundException) && !File.Exists(path))
        {
            throw new DriverException(DriverException.VdiMissing, $"disk {key} went from {Path} meanwhile");
        }
        catch (VhdException e)
        {
            throw new DriverException(DriverException.Damaged, e.Message);
        }
    }

    public bool Has(string key) => IsKey(key) && File.Exists(PathOf(key));

    /// <summary>An empty dynamic disk. A folder with a quota promises the room for all of it; one without is thin.</summary>
    public Disk Create(string key, long sizeBytes)
    {
        if (sizeBytes <= 0 || sizeBytes > LargestDiskBytes)
            throw new DriverException(DriverException.VdiSize, $"a VHD has 1 to {LargestDiskBytes} bytes, not {sizeBytes}");
        sizeBytes = (sizeBytes + SectorBytes - 1) / SectorBytes * SectorBytes;
        (long _, long free, long _) = Space();
        long needed = Record.QuotaBytes > 0 ? sizeBytes : OverheadOf(sizeBytes);
        if (needed > free)
            throw new DriverException(DriverException.NoSpace, $"{Path} has {free} bytes free, {needed} are needed");
        VhdImage.CreateDynamic(PathOf(key), sizeBytes);
        return Find(key);
    }

    /// <summary>
    /// A larger size for a disk that nobody has open; its own size again is nothing to do. A crash leaves the one or the other.
    /// </summary>
    public Disk Resize(string key, long sizeBytes)
    {
        Disk disk = Find(key);
        if (sizeBytes < disk.VirtualSizeBytes || sizeBytes > LargestDiskBytes)
            throw new DriverException(DriverException.VdiSize,
                $"{key} has {disk.VirtualSizeBytes} bytes and can have up to {LargestDiskBytes}, not {sizeBytes}: it does not shrink");
        sizeBytes = (sizeBytes + SectorBytes - 1) / SectorBytes * SectorBytes;
        (long _, long free, long _) = Space();
        long needed = OverheadOf(sizeBytes) - OverheadOf(disk.VirtualSizeBytes)
            + (Record.QuotaBytes > 0 ? sizeBytes - disk.VirtualSizeBytes : 0);
        if (needed > free)
            throw new DriverException(DriverException.NoSpace, $"{Path} has {free} bytes free, {needed} are needed");
        try
        {
            VhdResize.Apply(disk.Path, sizeBytes);
        }
        catch (VhdException e)
        {
            throw new DriverException(DriverException.ResizeFailed, e.Message);
        }

        return Find(key);
    }

    /// <summary>Removes a disk, and the bases that nobody needs any more.</summary>
    public void Delete(string key)
    {
        File.Delete(Find(key).Path);
        File.Delete(System.IO.Path.Combine(Path, key + ".json"));
        Posix.SyncDirectory(Path);
        while (CollectPlan.Next(Forest(), LeafLimitBytes, NobodyPutOff) is { Action: CollectAction.Delete } garbage)
            images.Delete(garbage.Key);
    }

    /// <summary>
    /// Splits a disk in two that share what it held: the content moves into a hidden base, the disk and the new one become its children.
    /// Nobody may have the disk's image open. At every point a crash leaves the disk with its content; who locks the folder next does the
    /// rest.
    /// </summary>
    public Disk Fork(string key, string newKey)
    {
        Disk disk = Find(key);
        (long _, long free, long _) = Space();
        if (2 * OverheadOf(disk.VirtualSizeBytes) > free)
            throw new DriverException(DriverException.NoSpace, $"{Path} has {free} bytes free");
        try
        {
            images.Fork(key, Guid.NewGuid().ToString(), newKey);
        }
        catch (VhdException e) when (e.Error == VhdError.TooDeep)
        {
            throw new DriverException(DriverException.ChainTooLong, e.Message);
        }

        return Find(newKey);
    }

    /// <summary>
    /// Lays a disk over another, which becomes its hidden base. Nobody may have either open. Done again, it is the same; a crash leaves the
    /// disk over the one or the other, and the base is hidden only when the disk needs it.
    /// </summary>
    public void Compose(string parentKey, string childKey)
    {
        Disk child = Find(childKey);
        Disk parent = Find(parentKey);
        if (parent.VirtualSizeBytes > child.VirtualSizeBytes)
            throw new DriverException(DriverException.VdiSize, $"{parentKey} is larger than {childKey}, which would hide its end");
        ImageForest forest = images.Scan(FolderUse.None, 0);
        if (forest.ChainOf(parentKey).Any(node => node.Key == childKey))
            throw new DriverException(DriverException.BadRequest, $"{parentKey} lies on {childKey} itself");
        if (forest.ChildrenOf(parentKey).Any(key => key != childKey))
            throw new DriverException(DriverException.BadRequest, $"{parentKey} is another disk's base");
        try
        {
            if (forest.Find(childKey)?.Parent != parentKey)
                VhdImage.SetParent(child.Path, parent.Path);
            VhdImage.SetHidden(parent.Path, true);
        }
        catch (VhdException e)
        {
            throw new DriverException(DriverException.BadRequest, e.Message);
        }
    }

    /// <summary>The filesystem's numbers, or the quota's where they are smaller.</summary>
    public (long TotalBytes, long FreeBytes, long UsedBytes) Space()
    {
        DriveInfo drive = new(Path);
        long used = images.Keys().Sum(LengthOf);
        if (Record.QuotaBytes == 0)
            return (drive.TotalSize, drive.AvailableFreeSpace, used);
        return (Record.QuotaBytes, Math.Max(0, Math.Min(drive.AvailableFreeSpace, Record.QuotaBytes - used)), used);
    }

    /// <summary>Takes the SR away; the folder too when the SR made it.</summary>
    public void Destroy()
    {
        if (images.Keys().Count > 0)
            throw new DriverException(DriverException.NotEmpty, $"{Path} holds disks");
        File.Delete(System.IO.Path.Combine(Path, RecordName));
        if (Record.MadeFolder && !Directory.EnumerateFileSystemEntries(Path).Any())
            Directory.Delete(Path);
    }

    public void Rename(string name, string description) => Save(Record with { Name = name, Description = description });

    /// <summary>Whether the drivers start no collector for this SR.</summary>
    public void SetCollectorOff(bool isOff)
    {
        if (isOff != Record.IsCollectorOff)
            Save(Record with { IsCollectorOff = isOff });
    }

    private void Save(FolderRecord record)
    {
        Record = record;
        WriteFile(RecordName, JsonSerializer.Serialize(Record, FolderJson.Default.FolderRecord));
    }

    /// <summary>Replaces a small file as a whole, durably.</summary>
    public void WriteFile(string name, string text)
    {
        string path = System.IO.Path.Combine(Path, name);
        string temporary = path + ".new";
        using (FileStream file = new(temporary, FileMode.Create, FileAccess.Write))
        {
            file.Write(System.Text.Encoding.UTF8.GetBytes(text));
            file.Flush(flushToDisk: true);
        }

        File.Move(temporary, path, overwrite: true);
        Posix.SyncDirectory(Path);
    }

    private string PathOf(string key) => IsKey(key)
        ? System.IO.Path.Combine(Path, key + ".vhd")
        : throw new DriverException(DriverException.VdiMissing, $"\"{key}\" is not a disk's name");

    private static bool IsKey(string key) => ImageFolder.IsKey(key);

    private static string KeyOf(string path) => System.IO.Path.GetFileNameWithoutExtension(path);

    private static Disk DiskOf(string path, VhdInfo info) =>
        new(KeyOf(path), path, info.VirtualSizeBytes, new FileInfo(path).Length, ParentNameOf(info));

    private static string? ParentNameOf(VhdInfo info) =>
        info.ParentPath is { } parent ? System.IO.Path.GetFileName(parent) : info.ParentName;

    /// <summary>Whether a collector would find something to do; who is in its way is not asked.</summary>
    public bool HasGarbage() =>
        images.Journals().Count > 0 || CollectPlan.Next(images.Scan(FolderUse.None, 0), LeafLimitBytes, NobodyPutOff) is not null;

    private ImageForest Forest() =>
        images.Scan(FolderUse.None with { Leased = new FolderUsers(images.Path, DiskTap.FromEnvironment()).Leased() }, LeafLimitBytes + 1);

    /// <summary>0 for a file that went since it was listed.</summary>
    private long LengthOf(string key)
    {
        FileInfo file = new(PathOf(key));
        return file.Exists ? file.Length : 0;
    }

    /// <summary>An empty image's tables, for a block size of 2 MiB.</summary>
    private static long OverheadOf(long sizeBytes) => 8192 + sizeBytes / (2 << 20) * 4;

    private static void CheckPath(string path)
    {
        if (!System.IO.Path.IsPathRooted(path))
            throw new DriverException(DriverException.LocationMissing, $"\"{path}\" is not an absolute path");
    }
}
