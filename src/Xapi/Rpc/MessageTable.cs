// Every message the server knows: the model's, and our own (VM.migrate_receive), each with its handler or none. A name is found without
// regard to the case of its class (the field's own documents write Host.get_by_name_label) and with "_" for its dot.
using Platform;
using Xapi.Database;

namespace Xapi.Rpc;

public sealed class MessageTable
{
    private readonly Dictionary<string, Entry> entries = [];

    public MessageTable(DataModel model)
    {
        foreach (ClassModel c in model.Classes)
        {
            foreach (MessageModel message in c.Messages)
                entries.Add(Key(c.Name, message.Name), new Entry(message));
        }
    }

    /// <summary>Gives a message of the model its handler; a later one takes the place of an earlier (a generic) one.</summary>
    public void Add(string name, MessageHandler handler)
    {
        Invariant.Holds(Find(name) is not null, "only a message of the model can be added without its parameters");
        Find(name)!.Handler = handler;
    }

    /// <summary>A handler that awaits nothing.</summary>
    public void Add(string name, Func<CallContext, IReadOnlyList<StorageAccess.Wire.RpcValue>, StorageAccess.Wire.RpcValue> handler) =>
        Add(name, (context, arguments) => Task.FromResult(handler(context, arguments)));

    /// <summary>A message that the model does not have.</summary>
    /// <param name="parameters">In the model's notation, without the session: <c>(host:ref host,
    /// options:map(string-&gt;string)={})</c>.</param>
    /// <param name="result">A type in the same notation.</param>
    public void Declare(string name, string parameters, string result, bool isAsync, MessageHandler handler)
    {
        int dot = name.IndexOf('.', StringComparison.Ordinal);
        MessageModel message = new(
            name[..dot], name[(dot + 1)..], MessageModel.ReadParameters(parameters), FieldType.Parse(result), isAsync,
            NeedsSession: true, IsInternal: false, IsHidden: false, MessageKind.Custom, IsRemoved: false);
        entries.Add(Key(message.ClassName, message.Name), new Entry(message) { Handler = handler });
    }

    /// <summary>The names that a client can use, in order: those that are answered and not hidden.</summary>
    public IReadOnlyList<string> Names => entries.Values
        .Where(static e => e.Handler is not null && e.Message is { IsHidden: false, IsRemoved: false })
        .Select(static e => e.Message.WireName)
        .Order(StringComparer.Ordinal)
        .ToList();

    /// <summary>Null when no class has such a message.</summary>
    public Entry? Find(string name)
    {
        int dot = name.IndexOf('.', StringComparison.Ordinal);
        if (dot >= 0)
            return entries.GetValueOrDefault(Key(name[..dot], name[(dot + 1)..]));
        // Class names hold "_" too (host_metrics_get_all): the first split that names a message wins.
        for (int i = name.IndexOf('_', StringComparison.Ordinal); i >= 0; i = name.IndexOf('_', i + 1))
        {
            if (entries.TryGetValue(Key(name[..i], name[(i + 1)..]), out Entry? entry))
                return entry;
        }

        return null;
    }

    private static string Key(string className, string message) => $"{className.ToLowerInvariant()}.{message}";

    public sealed class Entry(MessageModel message)
    {
        public MessageModel Message => message;

        /// <summary>Null: the model has the message, this server does not answer it.</summary>
        public MessageHandler? Handler { get; set; }
    }
}
