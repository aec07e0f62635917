using Platform;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Sessions;
using Xapi.Tasks;

namespace Xapi.Rpc;

/// <summary>Where a call came from: the transport, and what its headers say (research: xapi.md 1.3).</summary>
/// <param name="IsLocal">Over the daemon's own unix socket, which only root can open.</param>
/// <param name="SubtaskOf">The task that the caller works for; "" when it named none.</param>
public sealed record CallOrigin(bool IsLocal, string Originator, string SubtaskOf);

/// <summary>What a handler knows about the call it answers.</summary>
public sealed class CallContext(
    MessageModel message, CallOrigin origin, PoolDatabase database, Session? session, TaskRun? task, CancellationToken cancellationToken)
{
    public MessageModel Message => message;

    public CallOrigin Origin => origin;

    public PoolDatabase Database => database;

    /// <summary>Messages that need no session (logins) have none and must not ask.</summary>
    public Session Session => session ?? throw new InvariantException($"{message.WireName} has no session");

    /// <summary>Only messages that can be called asynchronously have a task, called so or not.</summary>
    public TaskRun Task => task ?? throw new InvariantException($"{message.WireName} has no task");

    /// <summary>Cancelled by task.cancel or by the daemon's end; for a message without a task, when the client goes away.</summary>
    public CancellationToken CancellationToken => cancellationToken;
}

/// <summary>
/// Answers one message. Arguments are canonical and complete: of the declared types, defaults filled in, without the session.
/// A void message answers "". <see cref="XapiException"/> and <see cref="StorageAccess.StorageException"/> become the answer's error.
/// </summary>
public delegate Task<RpcValue> MessageHandler(CallContext context, IReadOnlyList<RpcValue> arguments);
