// What migrations left behind: things that carry a migration's mark while no open journal of this pool owns them. Only what a journal says we made is ever
// removed; everything else is an operator's to keep (adopt) or to remove by the messages for such a thing.
using System.Text.Json.Nodes;
using Migration;
using StorageAccess;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Rpc;
using Xapi.Vms;

namespace Xapi.Migration;

/// <summary>A domain that waits for a guest's memory.</summary>
public sealed record IncomingDomain(string Vm, string Migration);

/// <summary>Where leftovers are, besides the database.</summary>
public interface IOrphanGround
{
    IReadOnlyList<DatapathRow> Datapaths();

    Task<IReadOnlyList<IncomingDomain>> IncomingDomainsAsync(CancellationToken cancellationToken);

    Task DestroyVdiAsync(string migration, string vdi, CancellationToken cancellationToken);

    Task DestroyDatapathAsync(string migration, DatapathId datapath, CancellationToken cancellationToken);

    Task DiscardDomainAsync(string migration, CancellationToken cancellationToken);
}

public sealed class Orphans(PoolDatabase database, MigrationStore store, IOrphanGround ground)
{
    private const string DatapathPrefix = "mirror/";
    private const string DomainPrefix = "domain/";

    private enum Kind
    {
        Vdi,
        HeldVdi,
        Datapath,
        Vm,
        Domain,
    }

    /// <param name="Id">The uuid of what has one; otherwise its name.</param>
    /// <param name="Reference">The row, where there is one.</param>
    /// <param name="WhyNot">Why it is not removed; null: it may be.</param>
    private sealed record Orphan(Kind Kind, string Id, string Reference, string Where, string Migration, string? WhyNot);

    public void AddTo(MessageTable messages)
    {
        messages.Declare("orphans.list", "()", "map(string->string)", isAsync: false, async (context, _) =>
            RpcValue.Map((await FindAsync(context.CancellationToken)).DistinctBy(static o => o.Id).ToDictionary(static o => o.Id, o => Describe(o).ToJsonString())));
        messages.Declare("orphans.adopt", "(uuid:string)", "void", isAsync: false, async (context, a) =>
        {
            Adopt(await RequireAsync(a[0].AsString(), context.CancellationToken));
            return "";
        });
        messages.Declare("orphans.remove", "(uuid:string)", "void", isAsync: false, async (context, a) =>
        {
            await RemoveAsync(await RequireAsync(a[0].AsString(), context.CancellationToken), context.CancellationToken);
            return "";
        });
    }

    private async Task<IReadOnlyList<Orphan>> FindAsync(CancellationToken cancellationToken)
    {
        IReadOnlyList<DatapathRow> datapaths = ground.Datapaths();
        List<Orphan> found = [];
        foreach (string vdi in database.All("VDI"))
        {
            if (database.GetMap("VDI", vdi, "sm_config").GetValueOrDefault(DestinationSide.MirrorKey) is { } mark)
                found.Add(OfMirrored(vdi, mark, datapaths));
            else if (HeldDisks.MigrationOf(database, vdi) is { } holder)
                found.Add(OfHeld(vdi, holder, datapaths));
        }

        foreach (DatapathRow row in datapaths.Where(static d => d.Datapath.Value.StartsWith(DatapathPrefix, StringComparison.Ordinal)))
        {
            (string migration, string device) = Split(row.Datapath.Value[DatapathPrefix.Length..]);
            string? whyNot = WhyNotMade(migration, new Resource(ResourceKind.Datapath, device), row.Datapath.Value, mayOwn: true);
            found.Add(new Orphan(Kind.Datapath, row.Datapath.Value, "", $"SR {row.Sr.Value}, VDI {row.Vdi.Value}", migration, whyNot));
        }

        foreach (string vm in database.All("VM"))
        {
            if (database.GetMap("VM", vm, "other_config").GetValueOrDefault(VmRows.ImportKey) is not { } migration)
                continue;
            string state = database.GetString("VM", vm, "power_state");
            string? whyNot = WhyNotMade(migration, new Resource(ResourceKind.Vm, ""), vm) ?? (state == "Halted" ? null : $"the VM is {state.ToLowerInvariant()}");
            found.Add(new Orphan(Kind.Vm, database.GetString("VM", vm, "uuid"), vm, "the pool's database", migration, whyNot));
        }

        foreach (IncomingDomain domain in await ground.IncomingDomainsAsync(cancellationToken))
        {
            found.Add(new Orphan(
                Kind.Domain, DomainPrefix + domain.Migration, "", $"xenopsd, for VM {domain.Vm}", domain.Migration,
                WhyNotMade(domain.Migration, new Resource(ResourceKind.Domain, ""), id: null)));
        }

        // A job may have begun or ended while we looked: whether it is open is asked last.
        return [.. found.Where(o => store.Destination(o.Migration) is not { IsClosed: false } && store.Source(o.Migration) is not { IsClosed: false })];
    }

    private Orphan OfMirrored(string vdi, string mark, IReadOnlyList<DatapathRow> datapaths)
    {
        (string migration, string device) = Split(mark);
        string? whyNot = WhyNotMade(migration, new Resource(ResourceKind.Disk, device), database.GetString("VDI", vdi, "location")) ?? WhyInUse(vdi, datapaths);
        return new Orphan(Kind.Vdi, database.GetString("VDI", vdi, "uuid"), vdi, $"SR {SrOf(vdi)}", migration, whyNot);
    }

    private Orphan OfHeld(string vdi, string migration, IReadOnlyList<DatapathRow> datapaths)
    {
        SourceState? job = store.Source(migration);
        string location = database.GetString("VDI", vdi, "location"), sr = SrOf(vdi);
        string? whyNot = job is null ? Unknown(migration)
            : !job.IsOwnedByDestination ? "the VM is this pool's: its migration did not take it away for good"
            : !job.Plan.Disks.Any(d => d.SourceDisk == location && d.SourceStorage == sr) ? "the migration's journal names another disk: this is a copy of one"
            : WhyInUse(vdi, datapaths);
        return new Orphan(Kind.HeldVdi, database.GetString("VDI", vdi, "uuid"), vdi, $"SR {sr}", migration, whyNot);
    }

    /// <summary>Null when a journal of this pool says that its migration made just this, and that it came to nothing.</summary>
    /// <param name="id">As the journal has it; null when the thing's name holds the migration's, so that there can be no other.</param>
    private string? WhyNotMade(string migration, Resource resource, string? id, bool mayOwn = false)
    {
        if (store.Destination(migration) is not { } job)
            return Unknown(migration);
        if (!job.IsClosed)
            return "its migration is under way";
        if (job.IsOwner && !mayOwn)
            return "its migration moved the VM here, and the VM may run on this: adopt it";
        string? made = job.Records.OfType<DestinationRecord.Made>().LastOrDefault(r => r.Resource == resource)?.Id;
        bool isOurs = made is null ? job.Records.OfType<DestinationRecord.Making>().Any(r => r.Resource == resource) : id is null || made == id;
        return isOurs ? null : $"the journal of migration {migration} does not say that it made this";
    }

    private string? WhyInUse(string vdi, IReadOnlyList<DatapathRow> datapaths)
    {
        if (database.GetSet("VDI", vdi, "VBDs") is [var vbd, ..])
            return $"it is a disk of VM {database.GetString("VM", database.GetRef("VBD", vbd, "VM"), "uuid")}";
        string sr = SrOf(vdi), location = database.GetString("VDI", vdi, "location");
        return datapaths.FirstOrDefault(d => d.Sr.Value == sr && d.Vdi.Value == location) is { } user ? $"it is open: {user}" : null;
    }

    private JsonObject Describe(Orphan orphan)
    {
        DestinationState? destination = store.Destination(orphan.Migration);
        SourceState? source = store.Source(orphan.Migration);
        MigrationPlan? plan = destination?.Plan ?? source?.Plan;
        return new JsonObject
        {
            ["what"] = orphan.Kind switch { Kind.Vdi => "VDI", Kind.HeldVdi => "held VDI", Kind.Datapath => "datapath", Kind.Vm => "VM", _ => "domain" },
            ["where"] = orphan.Where,
            ["job"] = new JsonObject
            {
                ["uuid"] = orphan.Migration,
                ["vm"] = plan?.Vm,
                ["vm_name"] = plan?.VmName,
                ["began"] = PeerProtocol.Node((destination?.Records[0] as DestinationRecord.Claimed)?.At ?? (source?.Records[0] as SourceRecord.Begun)?.At),
                ["ended"] = destination?.Name ?? source?.Phase,
            },
            ["safe_to_remove"] = orphan.WhyNot is null,
            ["reason"] = orphan.WhyNot ?? "a journal of this pool says that this migration made or left it; the migration is over, and nobody uses it",
        };
    }

    private void Adopt(Orphan orphan)
    {
        switch (orphan.Kind)
        {
            case Kind.Vdi:
                database.RemoveFromMap("VDI", orphan.Reference, "sm_config", DestinationSide.MirrorKey);
                break;
            case Kind.HeldVdi:
                HeldDisks.Release(database, orphan.Reference);
                break;
            case Kind.Vm:
                database.RemoveFromMap("VM", orphan.Reference, "other_config", VmRows.ImportKey);
                break;
            default:
                throw new XapiException("OPERATION_NOT_ALLOWED", $"{orphan.Id} is nothing that a pool can keep: only disks and VMs can be adopted");
        }
    }

    private async Task RemoveAsync(Orphan orphan, CancellationToken cancellationToken)
    {
        if (orphan.WhyNot is { } why)
            throw new XapiException("OPERATION_NOT_ALLOWED", $"{orphan.Id} is not removed: {why}");
        switch (orphan.Kind)
        {
            case Kind.Vm:
                VmRows.Destroy(database, orphan.Reference);
                break;
            case Kind.Datapath:
                await ground.DestroyDatapathAsync(orphan.Migration, new DatapathId(orphan.Id), cancellationToken);
                break;
            case Kind.Domain:
                await ground.DiscardDomainAsync(orphan.Migration, cancellationToken);
                break;
            default:
                await ground.DestroyVdiAsync(orphan.Migration, orphan.Reference, cancellationToken);
                break;
        }
    }

    private async Task<Orphan> RequireAsync(string id, CancellationToken cancellationToken) =>
        (await FindAsync(cancellationToken)).FirstOrDefault(o => o.Id == id)
            ?? throw new XapiException("UUID_INVALID", "orphan", id);

    private string SrOf(string vdi) => database.GetRef("VDI", vdi, "SR") is var sr && database.Exists("SR", sr) ? database.GetString("SR", sr, "uuid") : "";

    private static string Unknown(string migration) => $"no journal of this pool knows migration {migration}";

    /// <summary>"migration/device"; the field's own marks have no device.</summary>
    private static (string Migration, string Device) Split(string mark) =>
        mark.IndexOf('/', StringComparison.Ordinal) is var slash and >= 0 ? (mark[..slash], mark[(slash + 1)..]) : (mark, "");
}
