// The pool database: rows of every class of the model, in memory for reading, each change durable in STATE/xapi.db before it is visible to
// others (research: xapi.md 5.1). One lock around everything; a change costs one commit, a transaction of many costs one too. Sessions and
// tasks are rows as well, but live in memory only. Every change takes the next generation number, which also grows across restarts: numbers
// are reserved in blocks, a restart goes on behind the block. Changing a foreign key also counts as a change of the rows whose computed
// sets it alters.
using Platform;
using StorageAccess.Wire;

namespace Xapi.Database;

public enum RowOperation
{
    Add,
    Modify,
    Delete,
}

public readonly record struct RowChange(ClassModel Class, string Ref, RowOperation Operation, long Generation);

public sealed class PoolDatabase : IDisposable
{
    private const long GenerationBlock = 1_000_000;

    private readonly Lock gate = new();
    private readonly RowFile file;
    private readonly Func<Guid> newGuid;
    private readonly Dictionary<string, Table> tables;
    private Step? step;
    private long generation;
    private long generationLimit;

    private PoolDatabase(RowFile file, DataModel model, Func<Guid> newGuid)
    {
        this.file = file;
        this.newGuid = newGuid;
        Model = model;
        tables = model.Classes.Where(static c => c.IsInDatabase).ToDictionary(static c => c.Name, static c => new Table(c));
    }

    /// <summary>
    /// Raised after a change is durable, in the order of generations, once per change. Called under the database's lock: a handler may
    /// read, must be quick and must not throw.
    /// </summary>
    public event Action<RowChange>? Changed;

    public DataModel Model { get; }

    /// <summary>The generation of the last change.</summary>
    public long Generation
    {
        get
        {
            lock (gate)
                return generation;
        }
    }

    /// <exception cref="IOException">The file is damaged, of a newer version, or another daemon has it open; it was left as it
    /// is.</exception>
    public static PoolDatabase Open(string path, DataModel model, Func<Guid> newGuid)
    {
        RowFile file = RowFile.Open(path);
        try
        {
            PoolDatabase database = new(file, model, newGuid);
            foreach ((string className, Row row) in file.ReadRows(model))
                database.tables[className].Add(row);
            database.generation = file.ReadNumber("generation_limit");
            database.ReserveGenerations();
            return database;
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>Makes a row. Fields that are not given get the model's default, or their type's empty value; uuid a new one.</summary>
    /// <exception cref="XapiException">A value is not of its field's type, or DB_UNIQUENESS_CONSTRAINT_VIOLATION for a uuid in
    /// use.</exception>
    public string Create(string className, params IEnumerable<(string Field, RpcValue Value)> fields) => Transaction(() =>
    {
        Table table = tables[className];
        RpcValue[] values = table.Model.Fields.Select(static f => f.Default ?? f.Type.Empty).ToArray();
        foreach ((string name, RpcValue value) in fields)
        {
            FieldModel field = Stored(table, name);
            values[field.Index] = field.Type.Accept(value, name);
        }

        int uuid = table.Model.Field("uuid").Index;
        if (values[uuid].AsString().Length == 0)
            values[uuid] = newGuid().ToString();
        CheckUuid(table, values[uuid].AsString());
        Row row = new($"OpaqueRef:{newGuid()}", values, NextGeneration());
        table.Add(row);
        step!.Undo.Add(() => table.Remove(row));
        Note(table, row, RowOperation.Add, row.Created, isDurable: true);
        TouchTargets(table, row);
        return row.Ref;
    });

    /// <exception cref="XapiException">HANDLE_INVALID [class, ref].</exception>
    public void Destroy(string className, string reference) => Transaction(() =>
    {
        Table table = tables[className];
        Row row = Existing(table, reference);
        table.Remove(row);
        step!.Undo.Add(() => table.Add(row));
        Note(table, row, RowOperation.Delete, NextGeneration(), isDurable: true);
        TouchTargets(table, row);
    });

    public bool Exists(string className, string reference)
    {
        lock (gate)
            return tables[className].Find(reference) is not null;
    }

    /// <exception cref="XapiException">HANDLE_INVALID [class, ref].</exception>
    public RpcValue Get(string className, string reference, string field)
    {
        lock (gate)
            return ValueOf(Existing(tables[className], reference), tables[className].Model.Field(field));
    }

    public string GetString(string className, string reference, string field) => Get(className, reference, field).AsString();

    public string GetRef(string className, string reference, string field) => Get(className, reference, field).AsString();

    public long GetLong(string className, string reference, string field) => Get(className, reference, field).AsLong();

    public bool GetBool(string className, string reference, string field) => Get(className, reference, field).AsBool();

    public IReadOnlyDictionary<string, string> GetMap(string className, string reference, string field) =>
        Get(className, reference, field).AsMap();

    /// <summary>A set of strings or references.</summary>
    public IReadOnlyList<string> GetSet(string className, string reference, string field) =>
        Get(className, reference, field).AsArray().Select(static v => v.AsString()).ToList();

    /// <summary>Every field that clients may see, computed sets included.</summary>
    /// <exception cref="XapiException">HANDLE_INVALID [class, ref].</exception>
    public RpcStruct Record(string className, string reference)
    {
        lock (gate)
            return RecordOf(tables[className], Existing(tables[className], reference));
    }

    /// <exception cref="XapiException">HANDLE_INVALID, or the value is not of the field's type.</exception>
    public void Set(string className, string reference, string field, RpcValue value) => Transaction(() =>
    {
        Table table = tables[className];
        Row row = Existing(table, reference);
        FieldModel model = Stored(table, field);
        RpcValue before = row.Values[model.Index];
        RpcValue after = model.Type.Accept(value, field);
        if (before == after)
            return;
        if (field == "uuid")
            CheckUuid(table, after.AsString());
        table.Replace(row, model, after);
        step!.Undo.Add(() => table.Replace(row, model, before));
        Touch(table, row, model.IsPersistent);
        if (model.Reverse is not { } reverse)
            return;
        HashSet<string> changed = [.. Table.Targets(before)];
        changed.SymmetricExceptWith(Table.Targets(after));
        foreach (string target in changed)
            TouchTarget(reverse, target);
    });

    /// <exception cref="XapiException">MAP_DUPLICATE_KEY [class, field, ref, key]: drivers use this as a test-and-set.</exception>
    public void AddToMap(string className, string reference, string field, string key, RpcValue value) => Transaction(() =>
    {
        RpcStruct map = Get(className, reference, field).AsStruct();
        string accepted = ((MapType)Model[className].Field(field).Type).AcceptKey(key, field);
        if (map.Find(accepted) is not null)
            throw new XapiException("MAP_DUPLICATE_KEY", className, field, reference, accepted);
        Set(className, reference, field, new RpcStruct([.. map.Members, KeyValuePair.Create(accepted, value)]));
    });

    /// <summary>Nothing happens when the key is not there.</summary>
    public void RemoveFromMap(string className, string reference, string field, string key) => Transaction(() =>
    {
        RpcStruct map = Get(className, reference, field).AsStruct();
        Set(className, reference, field, new RpcStruct(map.Members.Where(m => m.Key != key).ToList()));
    });

    /// <summary>Sets a key whether it is there or not.</summary>
    public void SetInMap(string className, string reference, string field, string key, RpcValue value) => Transaction(() =>
    {
        RpcStruct map = Get(className, reference, field).AsStruct();
        Set(className, reference, field, new RpcStruct([.. map.Members.Where(m => m.Key != key), KeyValuePair.Create(key, value)]));
    });

    /// <summary>Nothing happens when the item is there already.</summary>
    public void AddToSet(string className, string reference, string field, RpcValue item) => Transaction(() =>
    {
        IReadOnlyList<RpcValue> items = Get(className, reference, field).AsArray();
        if (!items.Contains(item))
            Set(className, reference, field, new RpcArray([.. items, item]));
    });

    /// <summary>Nothing happens when the item is not there.</summary>
    public void RemoveFromSet(string className, string reference, string field, RpcValue item) => Transaction(() =>
        Set(className, reference, field, new RpcArray(Get(className, reference, field).AsArray().Where(i => i != item).ToList())));

    /// <summary>Counts as a change although nothing changes: a client asked for an event.</summary>
    /// <returns>The generation just before it.</returns>
    public long Touch(string className, string reference) => Transaction(() =>
    {
        Touch(tables[className], Existing(tables[className], reference), isDurable: false);
        return generation - 1;
    });

    /// <exception cref="XapiException">UUID_INVALID [class, uuid].</exception>
    public string ByUuid(string className, string uuid) =>
        FindByUuid(className, uuid) ?? throw new XapiException("UUID_INVALID", className, uuid);

    public string? FindByUuid(string className, string uuid)
    {
        lock (gate)
            return tables[className].FindByUuid(uuid);
    }

    public IReadOnlyList<string> ByNameLabel(string className, string label)
    {
        lock (gate)
        {
            int index = tables[className].Model.Field("name_label").Index;
            return tables[className].Rows.Where(r => r.Values[index].AsString() == label).Select(static r => r.Ref).ToList();
        }
    }

    /// <summary>Every row's reference, oldest first.</summary>
    public IReadOnlyList<string> All(string className) => Where(className, "true");

    /// <summary>The rows that an expression selects (<see cref="RowFilter"/>), oldest first.</summary>
    /// <exception cref="XapiException">INVALID_VALUE: the expression is malformed.</exception>
    public IReadOnlyList<string> Where(string className, string expression) =>
        Select(className, expression, static (row, _) => row.Ref);

    /// <summary>The selected rows with their records and the generations of their creation and last change.</summary>
    public IReadOnlyList<(string Ref, RpcStruct Record, long Created, long Modified)> Records(string className, string expression) =>
        Select(className, expression, (row, table) => (row.Ref, RecordOf(table, row), row.Created, row.Modified));

    /// <summary>
    /// Runs changes as one durable step: all of them are there after a crash, or none. An exception undoes them. Inside another transaction
    /// it is part of that one. No await inside: the lock is held.
    /// </summary>
    public T Transaction<T>(Func<T> body)
    {
        lock (gate)
        {
            if (step is not null)
                return body();
            Step mine = step = new Step();
            T result;
            try
            {
                result = body();
                Commit(mine);
            }
            catch
            {
                for (int i = mine.Undo.Count - 1; i >= 0; i--)
                    mine.Undo[i]();
                throw;
            }
            finally
            {
                step = null;
            }

            foreach (RowChange change in mine.Changes)
                Changed?.Invoke(change);
            return result;
        }
    }

    public void Transaction(Action body) => Transaction(() =>
    {
        body();
        return true;
    });

    public void Dispose() => file.Dispose();

    private void Commit(Step finished)
    {
        if (finished.Durable.Count != 0)
            file.Write(finished.Durable.Select(d => (d.Class, d.Ref, tables[d.Class.Name].Find(d.Ref))));
    }

    private List<T> Select<T>(string className, string expression, Func<Row, Table, T> select)
    {
        Func<IRowValues, bool> filter = RowFilter.Parse(expression, Model[className]);
        lock (gate)
        {
            Table table = tables[className];
            return table.Rows.Where(row => filter(new RowValues(this, row))).Select(row => select(row, table)).ToList();
        }
    }

    private RpcStruct RecordOf(Table table, Row row)
    {
        List<KeyValuePair<string, RpcValue>> members = new(table.Model.Fields.Count);
        foreach (FieldModel field in table.Model.Fields)
        {
            if (!field.IsInternal && ValueOf(row, field) is { } value and not RpcNil)
                members.Add(KeyValuePair.Create(field.Name, value));
        }

        return new RpcStruct(members);
    }

    private RpcValue ValueOf(Row row, FieldModel field) => field.ComputedFrom is { } key
        ? RpcValue.Strings(tables[key.ClassName].Referrers(key, row.Ref))
        : row.Values[field.Index];

    private static Row Existing(Table table, string reference) =>
        table.Find(reference) ?? throw new XapiException("HANDLE_INVALID", table.Model.Name, reference);

    private static FieldModel Stored(Table table, string name)
    {
        FieldModel field = table.Model.Field(name);
        Invariant.Holds(field.ComputedFrom is null, "a computed set is changed by its other side");
        return field;
    }

    private static void CheckUuid(Table table, string uuid)
    {
        if (table.FindByUuid(uuid) is not null)
            throw new XapiException("DB_UNIQUENESS_CONSTRAINT_VIOLATION", table.Model.Name, "uuid", uuid);
    }

    private void TouchTargets(Table table, Row row)
    {
        foreach (FieldModel key in table.ForeignKeys)
        {
            foreach (string target in Table.Targets(row.Values[key.Index]))
                TouchTarget(key.Reverse!, target);
        }
    }

    private void TouchTarget(FieldModel reverse, string reference)
    {
        Table table = tables[reverse.ClassName];
        if (table.Find(reference) is { } row)
            Touch(table, row, isDurable: false); // A computed set is not stored.
    }

    private void Touch(Table table, Row row, bool isDurable)
    {
        long before = row.Modified;
        row.Modified = NextGeneration();
        step!.Undo.Add(() => row.Modified = before);
        Note(table, row, RowOperation.Modify, row.Modified, isDurable);
    }

    private void Note(Table table, Row row, RowOperation operation, long at, bool isDurable)
    {
        step!.Changes.Add(new RowChange(table.Model, row.Ref, operation, at));
        if (isDurable && table.Model.IsPersistent)
            step.Durable.Add((table.Model, row.Ref));
    }

    private long NextGeneration()
    {
        if (generation == generationLimit)
            ReserveGenerations();
        return ++generation;
    }

    private void ReserveGenerations()
    {
        file.WriteNumber("generation_limit", generation + GenerationBlock);
        generationLimit = generation + GenerationBlock;
    }

    /// <summary>What a transaction has done so far.</summary>
    private sealed class Step
    {
        public List<Action> Undo { get; } = [];

        public List<RowChange> Changes { get; } = [];

        public HashSet<(ClassModel Class, string Ref)> Durable { get; } = [];
    }

    private sealed class RowValues(PoolDatabase database, Row row) : IRowValues
    {
        public string Ref => row.Ref;

        public RpcValue Value(FieldModel field) => database.ValueOf(row, field);
    }
}
