// The life and content of VDIs: everything but their datapaths.
using StorageAccess;

namespace SmapiV1Adapter;

public sealed partial class SmapiV1Backend
{
    public async Task<VdiInfo> VdiCreateAsync(string dbg, SrId sr, VdiInfo request, CancellationToken cancellationToken)
    {
        SmCall call = OnSr(dbg, "vdi_create", sr) with
        {
            Arguments =
            [
                Decimal(request.VirtualSizeBytes), request.NameLabel, request.NameDescription, "", Flag(request.IsASnapshot),
                request.SnapshotTime,
                request.SnapshotOf, Flag(request.ReadOnly),
            ],
            VdiType = request.Type,
            VdiSmConfig = request.SmConfig,
            FixedUuid = request.Uuid.Length == 0 ? null : request.Uuid,
        };
        return Introduced(sr, await CallAsync(call, SmAnswers.Vdi, cancellationToken));
    }

    public async Task<VdiInfo> VdiIntroduceAsync(
        string dbg, SrId sr, string uuid, IReadOnlyDictionary<string, string> smConfig, VdiId location, CancellationToken cancellationToken)
    {
        SmCall call = OnSr(dbg, "vdi_introduce", sr) with { NewLocation = location, NewUuid = uuid, VdiSmConfig = smConfig };
        return Introduced(sr, await CallAsync(call, SmAnswers.Vdi, cancellationToken));
    }

    public Task VdiDestroyAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        CallForNilAsync(OnVdi(dbg, "vdi_delete", sr, vdi), cancellationToken);

    public Task<VdiInfo> VdiStatAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        Task.FromResult(Vdi(sr, vdi).Info);

    public Task<VdiInfo> VdiSnapshotAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken) =>
        CopyAsync(dbg, "vdi_snapshot", sr, source, isSnapshot: true, cancellationToken);

    public Task<VdiInfo> VdiCloneAsync(string dbg, SrId sr, VdiInfo source, CancellationToken cancellationToken) =>
        CopyAsync(dbg, "vdi_clone", sr, source, isSnapshot: false, cancellationToken);

    public async Task<long> VdiResizeAsync(string dbg, SrId sr, VdiId vdi, long newSizeBytes, CancellationToken cancellationToken)
    {
        SmCall call = OnVdi(dbg, "vdi_resize", sr, vdi) with { Arguments = [Decimal(newSizeBytes)] };
        return Introduced(sr, await CallAsync(call, SmAnswers.Vdi, cancellationToken)).VirtualSizeBytes;
    }

    public Task VdiSetNameLabelAsync(string dbg, SrId sr, VdiId vdi, string nameLabel, CancellationToken cancellationToken) =>
        RenameAsync(dbg, sr, vdi, nameLabel, description: null, cancellationToken);

    public Task VdiSetNameDescriptionAsync(string dbg, SrId sr, VdiId vdi, string nameDescription, CancellationToken cancellationToken) =>
        RenameAsync(dbg, sr, vdi, label: null, nameDescription, cancellationToken);

    /// <summary>Not persistent: a clone takes the content away and is deleted, which leaves the VDI an empty leaf over it.</summary>
    public async Task VdiSetPersistentAsync(string dbg, SrId sr, VdiId vdi, bool persistent, CancellationToken cancellationToken)
    {
        if (persistent)
            return;
        SmCall clone = OnVdi(dbg, "vdi_clone", sr, vdi) with { DriverParams = new Dictionary<string, string>() };
        VdiId copy = Introduced(sr, await CallAsync(clone, SmAnswers.Vdi, cancellationToken)).Vdi;
        await VdiDestroyAsync(dbg, sr, copy, cancellationToken);
    }

    public Task VdiComposeAsync(string dbg, SrId sr, VdiId parent, VdiId child, CancellationToken cancellationToken) =>
        CallForNilAsync(OnVdi(dbg, "vdi_compose", sr, child) with { Arguments = [Vdi(sr, parent).Ref] }, cancellationToken);

    public async Task VdiRevertAsync(string dbg, SrId sr, VdiInfo snapshot, CancellationToken cancellationToken)
    {
        VdiId reverted = new(snapshot.SnapshotOf);
        await CallForNilAsync(
            OnVdi(dbg, "vdi_revert", sr, snapshot.Vdi) with { Arguments = [Vdi(sr, reverted).Ref] }, cancellationToken);
        database.RecordRevert(sr, reverted, snapshot.Vdi);
    }

    public Task VdiEnableCbtAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        CallForNilAsync(OnVdi(dbg, "vdi_enable_cbt", sr, vdi), cancellationToken);

    public Task VdiDisableCbtAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        CallForNilAsync(OnVdi(dbg, "vdi_disable_cbt", sr, vdi), cancellationToken);

    public async Task VdiDataDestroyAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        await CallForNilAsync(OnVdi(dbg, "vdi_data_destroy", sr, vdi), cancellationToken);
        database.RecordDataDestroyed(sr, vdi);
    }

    public Task<string> VdiListChangedBlocksAsync(string dbg, SrId sr, VdiId from, VdiId to, CancellationToken cancellationToken) =>
        CallAsync(
            OnVdi(dbg, "vdi_list_changed_blocks", sr, from) with { Arguments = [Vdi(sr, to).Ref] }, SmAnswers.Text, cancellationToken);

    /// <summary>The text by which a <see cref="StaticVdi"/> is attached with no toolstack to ask.</summary>
    public Task<string> VdiGenerateConfigAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken) =>
        CallAsync(OnVdi(dbg, "vdi_generate_config", sr, vdi), SmAnswers.Text, cancellationToken);

    private async Task<VdiInfo> CopyAsync(
        string dbg, string command, SrId sr, VdiInfo source, bool isSnapshot, CancellationToken cancellationToken)
    {
        SmCall call = OnVdi(dbg, command, sr, source.Vdi) with { DriverParams = source.SmConfig };
        VdiId copy = await CallAsync(call, SmAnswers.Vdi, cancellationToken);
        Introduced(sr, copy);
        database.RecordCopy(sr, copy, source, isSnapshot);
        await CallIfClaimedAsync(OnVdi(dbg, "vdi_update", sr, copy), cancellationToken);
        return Introduced(sr, copy);
    }

    private async Task RenameAsync(
        string dbg, SrId sr, VdiId vdi, string? label, string? description, CancellationToken cancellationToken)
    {
        Vdi(sr, vdi);
        database.RenameVdi(sr, vdi, label, description);
        await CallIfClaimedAsync(OnVdi(dbg, "vdi_update", sr, vdi), cancellationToken);
    }

    public Task VdiSetContentIdAsync(string dbg, SrId sr, VdiId vdi, string contentId, CancellationToken cancellationToken)
    {
        Vdi(sr, vdi);
        database.SetContentId(sr, vdi, contentId);
        return Task.CompletedTask;
    }

    public Task VdiSetSmConfigAsync(string dbg, SrId sr, VdiId vdi, string key, string? value, CancellationToken cancellationToken)
    {
        Vdi(sr, vdi);
        database.SetSmConfig(sr, vdi, key, value);
        return Task.CompletedTask;
    }

    public Task VdiTagAsync(string dbg, SrId sr, VdiId vdi, string tag, bool isThere, CancellationToken cancellationToken)
    {
        Vdi(sr, vdi);
        database.Tag(sr, vdi, tag, isThere);
        return Task.CompletedTask;
    }

    public Task VdiSetSnapshotOfAsync(
        string dbg, SrId sr, VdiId vdi, string snapshotTime, VdiId snapshotOf, CancellationToken cancellationToken)
    {
        Vdi(sr, vdi);
        database.RecordSnapshotOf(sr, vdi, snapshotTime, snapshotOf);
        return Task.CompletedTask;
    }

    /// <summary>The session is the SR's own, one for all its disks: the field makes one for each call, and leaves it (sheet 10.2).</summary>
    public Task<string> VdiGetUrlAsync(string dbg, SrId sr, VdiId vdi, CancellationToken cancellationToken)
    {
        Vdi(sr, vdi);
        return Task.FromResult($"{database.HostAddress}/{database.Sr(sr).SessionRef}/{vdi}");
    }

    private VdiInfo Introduced(SrId sr, VdiId vdi) =>
        database.FindVdi(sr, vdi)?.Info
        ?? throw StorageException.NoAnswer("SR_BACKEND_FAILURE", "", $"the driver answered location {vdi} and did not introduce it", "");
}
