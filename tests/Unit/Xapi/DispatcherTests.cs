using StorageAccess;
using StorageAccess.Wire;
using Xapi;
using Xapi.Database;
using Xapi.Rpc;

namespace Unit.XapiTests;

public sealed class DispatcherTests : IAsyncDisposable
{
    private readonly ApiWorld world = new();

    public ValueTask DisposeAsync() => world.DisposeAsync();

    [Theory]
    [InlineData("Host.get_by_name_label")]
    [InlineData("HOST.get_by_name_label")]
    [InlineData("host_get_by_name_label")]
    public void The_class_of_a_message_is_found_in_any_case_and_behind_an_underscore(string name) =>
        Assert.Equal(RpcValue.Strings([world.Host]), world.Call(name, "host"));

    [Fact]
    public void A_class_name_with_an_underscore_does_not_hide_behind_one_without()
    {
        string metrics = world.Database.Create("host_metrics");
        Assert.Equal(RpcValue.Strings([metrics]), world.Call("host_metrics_get_all"));
        Assert.Equal("MESSAGE_METHOD_UNKNOWN host_metrics_get_nothing", world.Refusal("host_metrics_get_nothing"));
    }

    [Theory]
    [InlineData("VM.nothing", 0, "MESSAGE_METHOD_UNKNOWN VM.nothing")]
    [InlineData("VM.GET_ALL", 0, "MESSAGE_METHOD_UNKNOWN VM.GET_ALL")]
    [InlineData("", 0, "MESSAGE_METHOD_UNKNOWN ")]
    [InlineData(".", 0, "MESSAGE_METHOD_UNKNOWN .")]
    [InlineData("_", 0, "MESSAGE_METHOD_UNKNOWN _")]
    [InlineData("Async.", 0, "MESSAGE_METHOD_UNKNOWN Async.")]
    [InlineData("VM.get_all", 1, "MESSAGE_PARAMETER_COUNT_MISMATCH VM.get_all 0 1")]
    [InlineData("VM.get_record", 0, "MESSAGE_PARAMETER_COUNT_MISMATCH VM.get_record 1 0")]
    [InlineData("VM_get_record", 2, "MESSAGE_PARAMETER_COUNT_MISMATCH VM.get_record 1 2")]
    [InlineData("VDI.snapshot", 0, "MESSAGE_PARAMETER_COUNT_MISMATCH VDI.snapshot 1 0")]
    [InlineData("VDI.snapshot", 1, "NOT_IMPLEMENTED VDI.snapshot")]
    [InlineData("VDI.snapshot", 9, "FIELD_TYPE_ERROR driver_params")]
    [InlineData("VMPP.get_all", 0, "MESSAGE_REMOVED")]
    [InlineData("VBD_metrics.get_all", 0, "MESSAGE_REMOVED")]
    [InlineData("Async.VM.get_all", 0, "Fault VM.get_all cannot be called asynchronously")]
    [InlineData("Async.session.logout", 0, "Fault session.logout cannot be called asynchronously")]
    [InlineData("VM.get_record", 1, "HANDLE_INVALID VM x")]
    [InlineData("VM.get_by_uuid", 1, "UUID_INVALID VM x")]
    [InlineData("pool.audit_log_append", 1, "INTERNAL_ERROR pool.audit_log_append is internal to the pool")]
    public void A_refusal_has_the_fields_code_and_parameters(string name, int parameters, string error) =>
        Assert.Equal(error, world.Refusal(name, Enumerable.Repeat((RpcValue)"x", parameters).ToArray()));

    [Fact]
    public void Surplus_parameters_are_ignored_only_where_one_has_a_default()
    {
        string seen = "";
        world.Messages.Add("VDI.snapshot", (_, a) => seen = string.Join(' ', a.Select(static v => v.GetType().Name)));
        world.Call("VDI.snapshot", "x");
        Assert.Equal("RpcString RpcStruct", seen);
        world.Call("VDI.snapshot", "x", RpcValue.Struct(), "surplus", new RpcNil());
        Assert.Equal("RpcString RpcStruct", seen);
    }

    [Fact]
    public void A_call_without_its_session_is_refused()
    {
        Assert.Equal("SESSION_INVALID OpaqueRef:x", world.RefusalAs("OpaqueRef:x", "VM.get_all"));
        foreach (RpcValue[] parameters in (RpcValue[][])[[], [new RpcNil()], [RpcValue.Strings([])]])
        {
            XapiException e = Assert.Throws<XapiException>(() => ApiWorld.Unwrap(() => world.Call("VM.get_all", ApiWorld.Tcp, parameters)));
            Assert.Equal(["SESSION_INVALID", ""], e.Description);
        }
    }

    [Fact]
    public void What_a_handler_throws_becomes_the_fields_error()
    {
        (Exception Thrown, string Error)[] table =
        [
            (new XapiException("VM_BAD_POWER_STATE", "a", "b"), "VM_BAD_POWER_STATE a b"),
            (new StorageException("SR_BACKEND_FAILURE_44", "", "full", ""), "SR_BACKEND_FAILURE_44  full "),
            (new InvalidOperationException("oops"), "INTERNAL_ERROR InvalidOperationException: oops"),
            (new RpcFormatException("bad"), "INTERNAL_ERROR RpcFormatException: bad"),
            (new OperationCanceledException("mine"), "INTERNAL_ERROR OperationCanceledException: mine"),
        ];
        foreach ((Exception thrown, string error) in table)
        {
            world.Messages.Add("SR.scan", Throw); // Has a task.
            world.Messages.Add("SR.get_supported_types", Throw); // Has none.
            Assert.Equal(error, world.Refusal("SR.scan", "x"));
            Assert.Equal(error, world.Refusal("SR.get_supported_types"));

            RpcValue Throw(CallContext context, IReadOnlyList<RpcValue> arguments) => throw thrown;
        }
    }

    [Fact]
    public void A_message_of_our_own_is_declared_in_the_models_notation()
    {
        world.Messages.Declare(
            "VM.migrate_receive", "(host:ref host, sr:ref SR, options:map(string->string)={})", "map(string->string)", isAsync: true,
            static (_, a) => Task.FromResult<RpcValue>(RpcValue.Struct(("sr", a[1]), ("count", $"{a.Count}"))));
        Assert.Equal(RpcValue.Struct(("sr", "OpaqueRef:NULL"), ("count", "3")), world.Call("vm.migrate_receive", "h", ""));
        Assert.Equal("MESSAGE_PARAMETER_COUNT_MISMATCH VM.migrate_receive 2 1", world.Refusal("VM.migrate_receive", "h"));
        Assert.Contains("VM.migrate_receive", world.Messages.Names);
    }

    [Fact]
    public void Only_what_is_answered_is_listed()
    {
        Assert.Contains("VM.get_all_records", world.Messages.Names);
        Assert.DoesNotContain("VM.start", world.Messages.Names);
        Assert.DoesNotContain("VMPP.get_all_records", world.Messages.Names);
        Assert.DoesNotContain("VDI.db_introduce", world.Messages.Names);
        foreach (string name in world.Messages.Names.Where(static n => n.EndsWith(".get_all_records", StringComparison.Ordinal)))
            Assert.IsType<RpcStruct>(world.Call(name));
    }

    [Fact]
    public void Every_generic_getter_of_every_class_answers_with_a_value_of_its_type()
    {
        foreach (ClassModel c in ApiWorld.Model.Classes.Where(static c => c.IsInDatabase))
        {
            string row = world.Database.Create(c.Name);
            foreach (MessageModel message in c.Messages.Where(static m => m is { Kind: MessageKind.Field, Parameters.Count: 1 }))
            {
                if (message.IsRemoved)
                    continue;
                RpcValue value = world.Call(message.WireName, row);
                Assert.Equal(value, message.Result.Accept(value, message.Name));
            }
        }
    }

    [Fact]
    public void Fields_are_set_added_and_removed()
    {
        string pool = world.Database.Create("pool");
        world.Call("pool.set_name_label", pool, "p");
        world.Call("pool.add_tags", pool, "t");
        world.Call("pool.add_tags", pool, "u");
        world.Call("pool.add_tags", pool, "t");
        world.Call("pool.remove_tags", pool, "u");
        world.Call("pool.add_to_other_config", pool, "k", "v");
        Assert.Equal($"MAP_DUPLICATE_KEY pool other_config {pool} k", world.Refusal("pool.add_to_other_config", pool, "k", "w"));
        Assert.Equal("FIELD_TYPE_ERROR value", world.Refusal("pool.set_other_config", pool, "v"));
        RpcStruct record = world.Call("pool.get_record", pool).AsStruct();
        Assert.Equal("p", record.Get("name_label"));
        Assert.Equal(RpcValue.Strings(["t"]), record.Get("tags"));
        Assert.Equal(RpcValue.Struct(("k", "v")), record.Get("other_config"));
        world.Call("pool.remove_from_other_config", pool, "k");
        world.Call("pool.remove_from_other_config", pool, "k");
    }

    [Fact]
    public void A_constructor_takes_what_a_client_may_set_and_names_what_is_missing()
    {
        RpcValue record = RpcValue.Struct(
            ("value", "s"), ("other_config", RpcValue.Struct()), ("uuid", "not mine to choose"), ("nonsense", "x"));
        string secret = world.Call("secret.create", record).AsString();
        Assert.Equal("s", world.Call("secret.get_value", secret));
        Assert.NotEqual("not mine to choose", world.Call("secret.get_uuid", secret));
        Assert.Contains("lacks \"host\"", world.Refusal("PBD.create", RpcValue.Struct()), StringComparison.Ordinal);
        Assert.Equal("FIELD_TYPE_ERROR args", world.Refusal("secret.create", "s"));
        world.Call("secret.destroy", secret);
        Assert.Equal($"HANDLE_INVALID secret {secret}", world.Refusal("secret.destroy", secret));
        Assert.Equal("NOT_IMPLEMENTED VDI.create", world.Refusal("VDI.create", RpcValue.Struct()));
    }
}
