using Platform;
using StorageAccess.Wire;
using Xapi;
using Xapi.Database;

namespace Unit.XapiTests;

public sealed class DatabaseTests : IAsyncDisposable
{
    private readonly ApiWorld world = new();

    private PoolDatabase Database => world.Database;

    public ValueTask DisposeAsync() => world.DisposeAsync();

    [Fact]
    public void Every_class_takes_a_row_of_defaults_and_gives_it_back_after_a_restart()
    {
        Dictionary<string, (string Ref, RpcStruct Record)> rows = [];
        foreach (ClassModel c in ApiWorld.Model.Classes.Where(static c => c.IsInDatabase))
        {
            string row = Database.Create(c.Name);
            rows[c.Name] = (row, Database.Record(c.Name, row));
            Assert.All(rows[c.Name].Record.Members, m => Assert.False(c.Field(m.Key).IsInternal));
        }

        world.Reopen();
        foreach ((string name, (string row, RpcStruct record)) in rows)
        {
            if (ApiWorld.Model[name].IsPersistent)
                Assert.Equal(record, Database.Record(name, row));
            else
                Assert.False(Database.Exists(name, row));
        }
    }

    [Fact]
    public void Values_of_every_shape_survive_a_restart()
    {
        string vm = Database.Create(
            "VM",
            ("name_label", "ü \"'\\<&>\r\n\t𝄞"),
            ("memory_static_max", new RpcInt(long.MaxValue)),
            ("HVM_shadow_multiplier", new RpcDouble(0.1)),
            ("is_a_template", true),
            ("snapshot_time", new RpcDateTime("20250319T04:16:24Z")),
            ("other_config", RpcValue.Struct(("", "empty key"), ("k", "v"))),
            ("tags", RpcValue.Strings(["b", "a"])),
            ("affinity", world.Host));
        RpcStruct before = Database.Record("VM", vm);
        world.Reopen();
        Assert.Equal(before, Database.Record("VM", vm));
    }

    [Fact]
    public void A_change_is_durable_before_the_call_returns()
    {
        string sr = Database.Create("SR", ("name_label", "one"));
        Database.Set("SR", sr, "name_label", "two");
        Database.AddToMap("SR", sr, "sm_config", "k", "v");
        // What a kill -9 now would leave: the files as they are, opened by somebody else.
        using Support.TemporaryDirectory copy = new();
        foreach (string suffix in (string[])["", "-wal"])
            File.Copy(world.DatabasePath + suffix, copy.File("xapi.db" + suffix));
        using PoolDatabase left = PoolDatabase.Open(copy.File("xapi.db"), ApiWorld.Model, Guid.NewGuid);
        Assert.Equal("two", left.GetString("SR", sr, "name_label"));
        Assert.Equal("v", left.GetMap("SR", sr, "sm_config")["k"]);
    }

    [Fact]
    public void Volatile_fields_of_a_persistent_row_start_empty_after_a_restart()
    {
        string sr = Database.Create("SR");
        Database.SetInMap("SR", sr, "current_operations", "task", "scan");
        world.Reopen();
        Assert.Empty(Database.GetMap("SR", sr, "current_operations"));
    }

    [Fact]
    public void The_other_side_of_every_relation_follows_its_foreign_key()
    {
        foreach (ClassModel c in ApiWorld.Model.Classes.Where(static c => c.IsInDatabase))
        {
            foreach (FieldModel key in c.Fields.Where(static f => f.Reverse is not null))
            {
                FieldModel reverse = key.Reverse!;
                string one = Database.Create(reverse.ClassName);
                string two = Database.Create(reverse.ClassName);
                string row = Database.Create(c.Name, (key.Name, Value(key, one)));
                Assert.Equal([row], Database.GetSet(reverse.ClassName, one, reverse.Name));
                Database.Set(c.Name, row, key.Name, Value(key, two));
                Assert.Empty(Database.GetSet(reverse.ClassName, one, reverse.Name));
                Assert.Equal([row], Database.GetSet(reverse.ClassName, two, reverse.Name));
                Database.Destroy(c.Name, row);
                Assert.Empty(Database.GetSet(reverse.ClassName, two, reverse.Name));
            }
        }

        static RpcValue Value(FieldModel key, string target) => key.Type is SetType ? RpcValue.Strings([target]) : target;
    }

    [Fact]
    public void A_change_of_a_foreign_key_is_a_change_of_both_rows_it_leaves_and_joins()
    {
        string one = Database.Create("SR");
        string two = Database.Create("SR");
        string vdi = Database.Create("VDI", ("SR", one));
        List<RowChange> changes = [];
        Database.Changed += changes.Add;
        Database.Set("VDI", vdi, "SR", two);
        Database.Set("VDI", vdi, "SR", two);
        Assert.Equal([vdi, one, two], changes.Select(static c => c.Ref));
        Assert.All(changes, static c => Assert.Equal(RowOperation.Modify, c.Operation));
        changes.Clear();
        Database.Destroy("VDI", vdi);
        Assert.Equal([(vdi, RowOperation.Delete), (two, RowOperation.Modify)], changes.Select(static c => (c.Ref, c.Operation)));
    }

    [Fact]
    public void Generations_grow_with_every_change_and_across_restarts_even_those_that_only_memory_saw()
    {
        long last = 0;
        Database.Changed += c =>
        {
            Assert.True(c.Generation > last);
            last = c.Generation;
        };
        for (int i = 0; i < 100; i++)
            Database.Create("task");
        Assert.Equal(last, Database.Generation);
        world.Reopen();
        Assert.True(Database.Generation >= last);
        string sr = Database.Create("SR");
        Assert.True(Database.Records("SR", "true").Single(r => r.Ref == sr).Created > last);
    }

    [Fact]
    public void A_transaction_that_fails_leaves_no_row_no_link_no_index_and_no_event()
    {
        string sr = Database.Create("SR", ("uuid", "sr"));
        string old = Database.Create("VDI", ("uuid", "old"), ("SR", sr));
        RpcStruct before = Database.Record("SR", sr);
        List<RowChange> changes = [];
        Database.Changed += changes.Add;
        Assert.Throws<InvalidOperationException>(() => Database.Transaction(() =>
        {
            Database.Create("VDI", ("uuid", "new"), ("SR", sr));
            Database.Destroy("VDI", old);
            Database.Set("SR", sr, "uuid", "other");
            Database.Set("SR", sr, "name_label", "changed");
            throw new InvalidOperationException();
        }));
        Assert.Empty(changes);
        Check();
        world.Reopen();
        Check();

        void Check()
        {
            Assert.Equal(before, Database.Record("SR", sr));
            Assert.Equal([old], Database.All("VDI"));
            Assert.Null(Database.FindByUuid("VDI", "new"));
            Assert.Equal(old, Database.ByUuid("VDI", "old"));
            Assert.Equal(sr, Database.ByUuid("SR", "sr"));
        }
    }

    [Fact]
    public void A_map_key_can_be_taken_once_and_given_up_often()
    {
        string vdi = Database.Create("VDI");
        Database.AddToMap("VDI", vdi, "sm_config", "host_1", "RW");
        XapiException e = Assert.Throws<XapiException>(() => Database.AddToMap("VDI", vdi, "sm_config", "host_1", "RO"));
        Assert.Equal(["MAP_DUPLICATE_KEY", "VDI", "sm_config", vdi, "host_1"], e.Description);
        Assert.Equal("RW", Database.GetMap("VDI", vdi, "sm_config")["host_1"]);
        Database.RemoveFromMap("VDI", vdi, "sm_config", "host_1");
        Database.RemoveFromMap("VDI", vdi, "sm_config", "host_1");
        Database.AddToMap("VDI", vdi, "sm_config", "host_1", "RO");
    }

    [Fact]
    public async Task Only_one_of_many_threads_takes_a_map_key()
    {
        string vdi = Database.Create("VDI");
        bool[] taken = await Task.WhenAll(Enumerable.Range(0, 8).Select(i => Task.Run(() =>
        {
            try
            {
                Database.AddToMap("VDI", vdi, "sm_config", "activating", $"{i}");
                return true;
            }
            catch (XapiException)
            {
                return false;
            }
        })));
        Assert.Single(taken, static t => t);
    }

    [Fact]
    public void Errors_name_the_class_and_the_reference()
    {
        string sr = Database.Create("SR", ("uuid", "u"));
        Assert.Equal("HANDLE_INVALID SR OpaqueRef:x", Error(() => Database.Get("SR", "OpaqueRef:x", "uuid")));
        Assert.Equal("HANDLE_INVALID VDI OpaqueRef:x", Error(() => Database.Destroy("VDI", "OpaqueRef:x")));
        Assert.Equal("UUID_INVALID SR nope", Error(() => Database.ByUuid("SR", "nope")));
        Assert.Equal("DB_UNIQUENESS_CONSTRAINT_VIOLATION SR uuid u", Error(() => Database.Create("SR", ("uuid", "u"))));
        Assert.Equal("FIELD_TYPE_ERROR shared", Error(() => Database.Set("SR", sr, "shared", "perhaps")));
        Assert.Throws<InvariantException>(() => Database.Set("SR", sr, "VDIs", RpcValue.Strings([])));

        static string Error(Action action) => string.Join(' ', Assert.Throws<XapiException>(action).Description);
    }

    [Fact]
    public void A_damaged_file_is_refused_and_left_as_it_is()
    {
        string damaged = $"{world.DatabasePath}.damaged";
        File.WriteAllText(damaged, new string('x', 10000));
        Assert.Throws<IOException>(() => PoolDatabase.Open(damaged, ApiWorld.Model, Guid.NewGuid));
        Assert.Equal(new string('x', 10000), File.ReadAllText(damaged));
    }

    [Fact]
    public void A_file_of_a_newer_format_is_refused()
    {
        Database.Dispose();
        using (SqliteFile file = SqliteFile.Open(world.DatabasePath, ""))
            file.Execute("UPDATE state SET value = 2 WHERE name = 'format_version'");
        Assert.Contains("version 2", Assert.Throws<IOException>(world.Open).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_file_of_an_older_model_gets_the_defaults_of_what_it_lacks()
    {
        string sr = Database.Create("SR", ("name_label", "old"));
        Database.Dispose();
        using (SqliteFile file = SqliteFile.Open(world.DatabasePath, ""))
            file.Execute("""UPDATE row SET fields = '{"name_label":"old","gone":1}' WHERE class = 'SR'""");
        world.Reopen();
        Assert.Equal("old", Database.GetString("SR", sr, "name_label"));
        Assert.Empty(Database.GetMap("SR", sr, "other_config"));
    }
}
