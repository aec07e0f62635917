// Messages about the names, origin and changed blocks of disks that are more than a row: the driver is told, and the row follows. What a driver's
// own session writes is its call-back, and only the row (research: storage.md 3.3, 4.1).
using StorageAccess;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Rpc;

namespace Xapi.Storage;

public sealed class VdiMessages(StorageLayer layer, IDiskCopier copier, PoolDatabase database)
{
    private static readonly string[] CbtTypes = ["user", "system"];

    public void AddTo(MessageTable messages)
    {
        messages.Add("SR.set_name_label", (context, a) => RenameSrAsync(context, a[0].AsString(), "name_label", a[1].AsString()));
        messages.Add("SR.set_name_description", (context, a) => RenameSrAsync(context, a[0].AsString(), "name_description", a[1].AsString()));
        messages.Add("VDI.set_name_label", (context, a) => RenameVdiAsync(context, a[0].AsString(), "name_label", a[1].AsString()));
        messages.Add("VDI.set_name_description", (context, a) => RenameVdiAsync(context, a[0].AsString(), "name_description", a[1].AsString()));
        messages.Add("VDI.introduce", IntroduceAsync);
        messages.Add("VDI.update", UpdateAsync);
        messages.Add("VDI.copy", CopyAsync);
        messages.Add("VDI.enable_cbt", (context, a) => SetCbtAsync(context, a[0].AsString(), isEnabled: true));
        messages.Add("VDI.disable_cbt", (context, a) => SetCbtAsync(context, a[0].AsString(), isEnabled: false));
        messages.Add("VDI.data_destroy", DataDestroyAsync);
        messages.Add("VDI.list_changed_blocks", ListChangedBlocksAsync);
    }

    /// <summary>An SR that is not plugged has no driver to tell: its row is its only name.</summary>
    private async Task<RpcValue> RenameSrAsync(CallContext context, string sr, string field, string name)
    {
        SrId id = Id(sr);
        if (context.Session.StorageSr is null && layer.SrList().Contains(id))
            await ToldAsync(sr, field == "name_label"
                ? layer.SrSetNameLabelAsync(Dbg(context), id, name, context.CancellationToken)
                : layer.SrSetNameDescriptionAsync(Dbg(context), id, name, context.CancellationToken));
        database.Set("SR", sr, field, name);
        return "";
    }

    private async Task<RpcValue> RenameVdiAsync(CallContext context, string vdi, string field, string name)
    {
        if (context.Session.StorageSr is null)
        {
            (string sr, SrId id, VdiId location) = Plugged(vdi);
            await ToldAsync(sr, field == "name_label"
                ? layer.VdiSetNameLabelAsync(Dbg(context), id, location, name, context.CancellationToken)
                : layer.VdiSetNameDescriptionAsync(Dbg(context), id, location, name, context.CancellationToken));
        }

        if (database.Exists("VDI", vdi))
            database.Set("VDI", vdi, field, name);
        return "";
    }

    /// <summary>A disk that the SR has and the pool does not know.</summary>
    private async Task<RpcValue> IntroduceAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        Dictionary<string, RpcValue> given = context.Message.Parameters.Select((p, i) => (p.Name, Value: a[i]))
            .ToDictionary(static p => p.Name, static p => p.Value);
        string sr = given["SR"].AsString(), location = given["location"].AsString();
        SrId id = PluggedSr(sr);
        if (VdiRows.Find(database, sr, location) is not null)
            throw new XapiException("LOCATION_NOT_UNIQUE", sr, location);
        Task<VdiInfo> introducing = layer.VdiIntroduceAsync(
            Dbg(context), id, given["uuid"].AsString(), given["sm_config"].AsMap(), new VdiId(location), context.CancellationToken);
        await ToldAsync(sr, introducing);
        string vdi = VdiRows.Ensure(database, sr, await introducing);
        database.Transaction(() =>
        {
            foreach (string field in (string[])["name_label", "name_description", "type", "sharable", "read_only", "other_config", "managed"])
                database.Set("VDI", vdi, field, given[field]);
        });
        return vdi;
    }

    /// <summary>The row as the driver sees the disk.</summary>
    private async Task<RpcValue> UpdateAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        (string sr, SrId id, VdiId location) = Plugged(a[0].AsString());
        VdiRows.Ensure(database, sr, await layer.VdiStatAsync(Dbg(context), id, location, context.CancellationToken));
        return "";
    }

    /// <summary>
    /// A new disk of another SR, or of the same. Onto a disk that is there (into_vdi) nothing is copied: what it held would show through where
    /// the source has zeros.
    /// </summary>
    private async Task<RpcValue> CopyAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        string vdi = a[0].AsString(), destination = a[1].AsString();
        if (database.Exists("VDI", a[2].AsString()) || database.Exists("VDI", a[3].AsString()))
            throw new XapiException("OPERATION_NOT_ALLOWED", "VDI.copy makes a new VDI: give sr, and neither base_vdi nor into_vdi");
        if (!database.Exists("SR", destination))
            throw new XapiException("HANDLE_INVALID", "SR", destination);
        (string _, SrId id, VdiId location) = Plugged(vdi);
        SrId to = PluggedSr(destination);
        VdiInfo copy = await new DiskCopying(layer, copier).CopyAsync(
            Dbg(context), id, location, to, new TaskProgress(context), context.CancellationToken);
        string made = VdiRows.Ensure(database, destination, copy);
        database.Transaction(() =>
        {
            foreach (string field in (string[])["name_label", "name_description", "other_config"])
                database.Set("VDI", made, field, database.Get("VDI", vdi, field));
        });
        return made;
    }

    private async Task<RpcValue> SetCbtAsync(CallContext context, string vdi, bool isEnabled)
    {
        string type = database.GetString("VDI", vdi, "type");
        if (!CbtTypes.Contains(type))
            throw new XapiException("VDI_INCOMPATIBLE_TYPE", vdi, type);
        if (database.GetBool("VDI", vdi, "is_a_snapshot"))
            throw new XapiException("OPERATION_NOT_ALLOWED", $"VDI {vdi} is a snapshot: its changed blocks are of the disk that it is of");
        if (isEnabled && database.GetString("VDI", vdi, "on_boot") == "reset")
            throw new XapiException("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION");
        if (database.GetBool("VDI", vdi, "cbt_enabled") == isEnabled)
            return "";
        (string sr, SrId id, VdiId location) = Plugged(vdi);
        await ToldAsync(sr, isEnabled
            ? layer.VdiEnableCbtAsync(Dbg(context), id, location, context.CancellationToken)
            : layer.VdiDisableCbtAsync(Dbg(context), id, location, context.CancellationToken));
        database.Set("VDI", vdi, "cbt_enabled", isEnabled);
        return "";
    }

    private async Task<RpcValue> DataDestroyAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        string vdi = a[0].AsString();
        if (database.GetString("VDI", vdi, "type") == "cbt_metadata")
            return "";
        if (!database.GetBool("VDI", vdi, "is_a_snapshot"))
            throw new XapiException("OPERATION_NOT_ALLOWED", $"VDI {vdi} is no snapshot: its content would be lost");
        if (!database.GetBool("VDI", vdi, "cbt_enabled"))
            throw new XapiException("VDI_NO_CBT_METADATA", vdi);
        if (database.GetSet("VDI", vdi, "VBDs").FirstOrDefault(vbd => database.GetBool("VBD", vbd, "currently_attached")) is { } user)
            throw new XapiException("VDI_IN_USE", vdi, "data_destroy", $"VBD {user} is attached");
        (string sr, SrId id, VdiId location) = Plugged(vdi);
        await ToldAsync(sr, layer.VdiDataDestroyAsync(Dbg(context), id, location, context.CancellationToken));
        database.Set("VDI", vdi, "type", "cbt_metadata");
        return "";
    }

    /// <returns>Base64 of a bitmap, a bit for 64 KiB, first block in the highest bit.</returns>
    private async Task<RpcValue> ListChangedBlocksAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        (string sr, SrId id, VdiId from) = Plugged(a[0].AsString());
        (string other, SrId _, VdiId to) = Plugged(a[1].AsString());
        if (sr != other)
            throw new XapiException("OPERATION_NOT_ALLOWED", "VDI.list_changed_blocks compares two VDIs of one SR");
        Task<string> listing = layer.VdiListChangedBlocksAsync(Dbg(context), id, from, to, context.CancellationToken);
        await ToldAsync(sr, listing);
        return await listing;
    }

    /// <summary>What a driver lacks, XenAPI's clients know under another name than SMAPIv2's.</summary>
    private static async Task ToldAsync(string sr, Task call)
    {
        try
        {
            await call;
        }
        catch (StorageException e) when (e.Tag == "Unimplemented")
        {
            throw new XapiException("SR_OPERATION_NOT_SUPPORTED", sr);
        }
    }

    private (string Sr, SrId Id, VdiId Location) Plugged(string vdi)
    {
        string sr = database.GetRef("VDI", vdi, "SR");
        return (sr, PluggedSr(sr), new VdiId(database.GetString("VDI", vdi, "location")));
    }

    private SrId PluggedSr(string sr)
    {
        if (!database.Exists("SR", sr))
            throw new XapiException("HANDLE_INVALID", "SR", sr);
        IReadOnlyList<string> pbds = database.GetSet("SR", sr, "PBDs");
        if (pbds.Count == 0)
            throw new XapiException("SR_HAS_NO_PBDS", sr);
        return pbds.Any(pbd => database.GetBool("PBD", pbd, "currently_attached")) ? Id(sr) : throw new XapiException("SR_NOT_ATTACHED", sr);
    }

    private SrId Id(string sr) => new(database.GetString("SR", sr, "uuid"));

    private static string Dbg(CallContext context) => context.Task.Ref;

    private sealed class TaskProgress(CallContext context) : IProgress<double>
    {
        public void Report(double value) => context.Task.SetProgress(value);
    }
}
