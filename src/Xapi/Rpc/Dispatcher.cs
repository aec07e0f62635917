// From a wire name and its raw parameters to an answer (research: xapi.md 1.5): find the message, count and type the arguments, check the
// session, make the task, run the handler. Every refusal is an XapiException with the field's exact code and parameters, because clients
// probe with them.
using Microsoft.Extensions.Logging;
using Platform;
using StorageAccess;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Sessions;
using Xapi.Tasks;

namespace Xapi.Rpc;

public sealed class Dispatcher(
    MessageTable messages, PoolDatabase database, SessionTable sessions, TaskTable tasks, ILogger<Dispatcher> logger)
{
    private static readonly string[] AsyncPrefixes = ["Async.", "InternalAsync."];

    /// <summary>Answers one call; an asynchronous one with its task's reference, at once.</summary>
    /// <param name="parameters">The session first, except for messages that need none.</param>
    /// <param name="cancellationToken">The client went away. A call that has a task goes on.</param>
    /// <exception cref="XapiException">The call was refused or failed.</exception>
    public async Task<RpcValue> CallAsync(
        string name, IReadOnlyList<RpcValue> parameters, CallOrigin origin, CancellationToken cancellationToken)
    {
        try
        {
            return await RunAsync(name, parameters, origin, cancellationToken);
        }
        catch (Exception e) when (e is not XapiException && !(e is OperationCanceledException && cancellationToken.IsCancellationRequested))
        {
            throw Translate(name, e);
        }
    }

    private async Task<RpcValue> RunAsync(
        string name, IReadOnlyList<RpcValue> parameters, CallOrigin origin, CancellationToken cancellationToken)
    {
        string? prefix = AsyncPrefixes.FirstOrDefault(p => name.StartsWith(p, StringComparison.Ordinal));
        MessageTable.Entry entry = messages.Find(name[(prefix?.Length ?? 0)..]) ?? throw new XapiException("MESSAGE_METHOD_UNKNOWN", name);
        MessageModel message = entry.Message;
        if (message.IsRemoved)
            throw new XapiException("MESSAGE_REMOVED");
        if (prefix is not null && !message.IsAsync)
            throw new XapiException("Fault", $"{message.WireName} cannot be called asynchronously");

        IReadOnlyList<RpcValue> given = message.NeedsSession ? parameters.Skip(1).ToList() : parameters;
        CheckCount(message, given.Count);
        Session? session = message.NeedsSession ? sessions.Authenticate(parameters.Count == 0 ? "" : SessionOf(parameters[0])) : null;
        if (message.IsInternal && session is not { IsPool: true })
            throw new XapiException("INTERNAL_ERROR", $"{message.WireName} is internal to the pool");
        IReadOnlyList<RpcValue> arguments = Accept(message, given);
        if (session is not null)
            StorageRole.Check(message, session, arguments, database);
        if (entry.Handler is not { } handler)
            throw new XapiException("NOT_IMPLEMENTED", message.WireName);

        bool isAsync = prefix is not null;
        if (!isAsync && (!message.IsAsync || message.ClassName is "task" or "event")) // These two never have tasks of their own.
            return await handler(new CallContext(message, origin, database, session, null, cancellationToken), arguments);
        TaskRun task = tasks.Begin(isAsync ? $"Async.{message.WireName}" : message.WireName, session, origin.SubtaskOf);
        if (!isAsync)
            return await tasks.RunAsync(task, message.Result, Work);
        tasks.Start(task, message.Result, Work);
        return task.Ref;

        async Task<RpcValue> Work()
        {
            try
            {
                return await handler(new CallContext(message, origin, database, session, task, task.CancellationToken), arguments);
            }
            catch (Exception e) when (e is not XapiException and not OperationCanceledException)
            {
                throw Translate(name, e);
            }
        }
    }

    private static string SessionOf(RpcValue value) =>
        value is RpcString text ? text.Value : throw new XapiException("SESSION_INVALID", "");

    /// <summary>Both numbers leave out the session; a message with any default ignores what comes beyond its parameters.</summary>
    private static void CheckCount(MessageModel message, int received)
    {
        int required = message.Parameters.Count(static p => p.Default is null);
        bool isTooMany = received > message.Parameters.Count && required == message.Parameters.Count;
        if (received < required || isTooMany)
            throw new XapiException("MESSAGE_PARAMETER_COUNT_MISMATCH", message.WireName, $"{required}", $"{received}");
    }

    private static List<RpcValue> Accept(MessageModel message, IReadOnlyList<RpcValue> given) =>
        message.Parameters.Select((p, i) => i < given.Count ? p.Type.Accept(given[i], p.Name) : p.Default!).ToList();

    private XapiException Translate(string name, Exception exception)
    {
        switch (exception)
        {
            case StorageException storage:
                return new XapiException(storage.Code, storage.Parameters);
            case InvariantException broken:
                logger.LogCritical(exception, "{Message} found our own state wrong", name);
                throw Invariant.Stop(broken);
            default:
                logger.LogError(exception, "{Message} failed", name);
                break;
        }

        return new XapiException("INTERNAL_ERROR", $"{exception.GetType().Name}: {exception.Message}");
    }
}
