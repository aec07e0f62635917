using StorageAccess;
using Xapi.Storage;
using Xapi.Vms;
using Xenops;

namespace Xapi.Migration;

/// <summary>This pool's storage layer and its xenopsd.</summary>
public sealed class OrphanGround(StorageHost storage, StorageMessages vdis, XenopsHost xenops) : IOrphanGround
{
    private const string Dbg = "orphans";

    public IReadOnlyList<DatapathRow> Datapaths() => storage.Layer.Datapaths();

    public async Task<IReadOnlyList<IncomingDomain>> IncomingDomainsAsync(CancellationToken cancellationToken)
    {
        List<IncomingDomain> found = [];
        foreach (Vm vm in await xenops.Client.VmListAsync(Dbg, cancellationToken))
        {
            try
            {
                if (await xenops.Client.VmStatAsync(Dbg, vm.Id, cancellationToken) is { State: "Incoming", Migration: { } migration })
                    found.Add(new IncomingDomain(vm.Id, migration));
            }
            catch (XenopsException e) when (e.Tag == "Does_not_exist")
            {
                // It went while we looked.
            }
        }

        return found;
    }

    public Task DestroyVdiAsync(string migration, string vdi, CancellationToken cancellationToken) => vdis.DestroyVdiAsync(migration, vdi, cancellationToken);

    public Task DestroyDatapathAsync(string migration, DatapathId datapath, CancellationToken cancellationToken) =>
        storage.Layer.DestroyAsync(migration, datapath, allowLeak: false, cancellationToken);

    public Task DiscardDomainAsync(string migration, CancellationToken cancellationToken) =>
        xenops.Client.DiscardAsync(migration, migration, cancellationToken);
}
