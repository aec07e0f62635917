// One operation at a time on a VM: the field's current_operations, which clients read, and the lock behind it.
using StorageAccess.Wire;
using Xapi.Database;

namespace Xapi.Vms;

public sealed class VmOperations(PoolDatabase database)
{
    private readonly Lock gate = new();
    private readonly Dictionary<string, string> held = [];

    /// <summary>A daemon that was killed leaves operations in the rows; nothing is under way at a start.</summary>
    public void Clear()
    {
        foreach (string vm in database.All("VM").Where(vm => database.GetMap("VM", vm, "current_operations").Count > 0))
            database.Set("VM", vm, "current_operations", RpcValue.Struct());
    }

    /// <exception cref="XapiException">HANDLE_INVALID, or OTHER_OPERATION_IN_PROGRESS with what is under way.</exception>
    public IDisposable Take(string vm, string task, string operation)
    {
        if (!database.Exists("VM", vm))
            throw new XapiException("HANDLE_INVALID", "VM", vm);
        lock (gate)
        {
            if (held.TryGetValue(vm, out string? other))
                throw new XapiException("OTHER_OPERATION_IN_PROGRESS", "VM", vm, other, vm);
            held[vm] = operation;
        }

        database.SetInMap("VM", vm, "current_operations", task, operation);
        return new Held(this, vm, task);
    }

    private void Release(string vm, string task)
    {
        lock (gate)
            held.Remove(vm);
        database.Transaction(() =>
        {
            if (database.Exists("VM", vm))
                database.RemoveFromMap("VM", vm, "current_operations", task);
        });
    }

    private sealed class Held(VmOperations operations, string vm, string task) : IDisposable
    {
        public void Dispose() => operations.Release(vm, task);
    }
}
