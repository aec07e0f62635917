// The life of a VM in its pool: start, pause, stop, destroy. Whoever makes a domain run asks the ownership record first.
using Microsoft.Extensions.Logging;
using Migration;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Migration;
using Xapi.Rpc;
using Xenops;

namespace Xapi.Vms;

public sealed partial class VmMessages(
    PoolDatabase database, XenopsHost xenops, MigrationStore store, VmOperations operations, string hostRef, TimeProvider time, ILogger log)
{
    private XenopsClient Client => xenops.Client;

    public void AddTo(MessageTable messages)
    {
        messages.Add("VM.start", StartAsync);
        messages.Add("VM.pause", (context, a) => TurnAsync(
            context, a[0].AsString(), "pause", "Running", "Paused", uuid => Client.VmPauseAsync(Dbg(context), uuid, context.CancellationToken)));
        messages.Add("VM.unpause", (context, a) => TurnAsync(
            context, a[0].AsString(), "unpause", "Paused", "Running", uuid => Client.VmUnpauseAsync(Dbg(context), uuid, context.CancellationToken)));
        messages.Add("VM.clean_shutdown", (context, a) => StopAsync(context, a[0].AsString(), isClean: true));
        messages.Add("VM.hard_shutdown", (context, a) => StopAsync(context, a[0].AsString(), isClean: false));
        messages.Add("VM.destroy", (context, a) =>
        {
            string vm = a[0].AsString();
            using IDisposable held = operations.Take(vm, context.Task.Ref, "destroy");
            Require(vm, "Halted");
            VmRows.Destroy(database, vm);
            return "";
        });
    }

    /// <summary>
    /// After a start, ours or xenopsd's: a VM that xenopsd does not hold is not running, whatever the row says. Its guest is gone without
    /// a shutdown, so its administrator is told. A VM on its way to another pool too: its migration finds no guest, and ends.
    /// </summary>
    public async Task ReconcileAsync(CancellationToken cancellationToken)
    {
        HashSet<string> held = [.. (await Client.VmListAsync("start", cancellationToken)).Select(static v => v.Id)];
        foreach (string vm in database.All("VM").Where(vm => !database.GetBool("VM", vm, "is_control_domain")))
        {
            string uuid = database.GetString("VM", vm, "uuid");
            string was = database.GetString("VM", vm, "power_state");
            if (was == "Halted" || held.Contains(uuid))
                continue;
            VmRows.SetPowerState(database, vm, "Halted", hostRef);
            AlertMessages.AddCrash(database, time, uuid, $"The guest was {was} and is gone: it ended without a shutdown. The VM is halted; its disks are as the guest left them.");
            LogCrashed(log, uuid, was);
        }
    }

    /// <summary>Makes the domain run from its disks, if the VM is this pool's to run. Rows are the caller's.</summary>
    /// <exception cref="XapiException">Nothing of it is left running.</exception>
    public async Task BootAsync(string dbg, string vm, CancellationToken cancellationToken)
    {
        string uuid = database.GetString("VM", vm, "uuid");
        Ownership ownership = store.OwnershipOf(uuid);
        if (ownership.Owner != Owner.Here)
        {
            throw new XapiException(
                "OPERATION_NOT_ALLOWED", $"VM {uuid} is not this pool's to run: its owner is {ownership.Owner} since migration {ownership.Migration}");
        }

        if (database.GetMap("VM", vm, "other_config").GetValueOrDefault(GivenUpKey) is { } migration)
            throw new XapiException("OPERATION_NOT_ALLOWED", $"VM {uuid} is being given back to its source by migration {migration}");
        Vm record = VmRows.ForXenops(database, vm);
        try
        {
            await Client.VmAddAsync(dbg, record, cancellationToken);
            await Client.VmStartAsync(dbg, uuid, cancellationToken);
        }
        catch (XenopsException e)
        {
            await ForgetAsync(uuid);
            throw Translate(vm, e);
        }
    }

    /// <summary>A halted VM starts here no more: its source takes it back. The mark comes before the journal's word, so that no start slips in between.</summary>
    /// <exception cref="MigrationException">It runs, or something is being done with it.</exception>
    public void GiveUp(string vm, string migration)
    {
        try
        {
            using IDisposable held = operations.Take(vm, migration, "migrate_send");
            Require(vm, "Halted");
            database.SetInMap("VM", vm, "other_config", GivenUpKey, migration);
        }
        catch (XapiException e)
        {
            throw new MigrationException(e.Code, e.Parameters, MigrationSide.Destination, $"the VM cannot be given back: {e.Message}", e);
        }
    }

    /// <summary>In other_config: the migration by which the VM is given back.</summary>
    private const string GivenUpKey = "relinquished_by";

    private async Task<RpcValue> StartAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        string vm = a[0].AsString();
        using IDisposable held = operations.Take(vm, context.Task.Ref, "start");
        Require(vm, "Halted");
        if (database.GetBool("VM", vm, "is_a_template"))
            throw new XapiException("VM_IS_TEMPLATE", vm);
        await BootAsync(Dbg(context), vm, context.CancellationToken);
        if (a[1].AsBool())
        {
            try
            {
                await Client.VmPauseAsync(Dbg(context), database.GetString("VM", vm, "uuid"), context.CancellationToken);
            }
            catch (XenopsException e)
            {
                await ForgetAsync(database.GetString("VM", vm, "uuid"));
                throw Translate(vm, e);
            }
        }

        VmRows.SetPowerState(database, vm, a[1].AsBool() ? "Paused" : "Running", hostRef);
        return "";
    }

    private async Task<RpcValue> StopAsync(CallContext context, string vm, bool isClean)
    {
        string operation = isClean ? "clean_shutdown" : "hard_shutdown";
        using IDisposable held = operations.Take(vm, context.Task.Ref, operation);
        if (isClean)
            Require(vm, "Running");
        else if (database.GetString("VM", vm, "power_state") == "Halted")
            throw BadPowerState(vm, "running", "Halted");
        string uuid = database.GetString("VM", vm, "uuid");
        try
        {
            await Client.VmShutdownAsync(Dbg(context), uuid, isClean, context.CancellationToken);
            await Client.VmRemoveAsync(Dbg(context), uuid, context.CancellationToken);
        }
        catch (XenopsException e) when (e.Tag != "Does_not_exist")
        {
            throw Translate(vm, e);
        }
        catch (XenopsException)
        {
            // xenopsd lost it with its own life: it is halted.
        }

        VmRows.SetPowerState(database, vm, "Halted", hostRef);
        return "";
    }

    private async Task<RpcValue> TurnAsync(CallContext context, string vm, string operation, string from, string to, Func<string, Task> turn)
    {
        using IDisposable held = operations.Take(vm, context.Task.Ref, operation);
        Require(vm, from);
        try
        {
            await turn(database.GetString("VM", vm, "uuid"));
        }
        catch (XenopsException e)
        {
            throw Translate(vm, e);
        }

        VmRows.SetPowerState(database, vm, to, hostRef);
        return "";
    }

    private async Task ForgetAsync(string uuid)
    {
        try
        {
            await Client.VmRemoveAsync("undo", uuid, CancellationToken.None);
        }
        catch (XenopsException e) when (e.Tag == "Does_not_exist")
        {
            // It was never added.
        }
    }

    private void Require(string vm, string expected)
    {
        string actual = database.GetString("VM", vm, "power_state");
        if (actual != expected)
            throw BadPowerState(vm, expected, actual);
    }

    private static XapiException BadPowerState(string vm, string expected, string actual) =>
        new("VM_BAD_POWER_STATE", vm, expected.ToLowerInvariant(), actual.ToLowerInvariant());

    private static XapiException Translate(string vm, XenopsException e) => e.Tag switch
    {
        "Storage_backend_error" => new XapiException(e.Arguments[0], [.. e.Arguments.Skip(1)]),
        "Bad_power_state" => BadPowerState(vm, e.Arguments[^1], e.Arguments[0]),
        _ => new XapiException("INTERNAL_ERROR", $"xenopsd: {e.Message}"),
    };

    private static string Dbg(CallContext context) => context.Task.Ref;

    [LoggerMessage(Level = LogLevel.Error, Message = "the guest of VM {Uuid} was {Was} and is gone; the VM is halted")]
    private static partial void LogCrashed(ILogger log, string uuid, string was);
}
