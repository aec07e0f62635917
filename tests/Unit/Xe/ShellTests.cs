// What a script sees: exact output, stable exit codes, and errors that say what to do. The pool is a fake of a few lines behind a real socket.
using System.Text.Json.Nodes;
using StorageAccess.Wire;
using Support;
using Xe.Output;
using Xe.Verbs;

namespace Unit.XeTests;

public sealed class ShellTests : IDisposable
{
    private const string VmUuid = "11111111-1111-1111-1111-111111111111";
    private const string SrUuid = "22222222-2222-2222-2222-222222222222";
    private readonly FakePool pool = new();

    public ShellTests()
    {
        pool.Answers["VM.get_all_records"] = static _ => RpcValue.Struct(
            ("OpaqueRef:vm", Vm("web, one", isTemplate: false)), ("OpaqueRef:template", Vm("a template", isTemplate: true)));
        pool.Answers["VM.get_by_uuid"] = static a => a[0].AsString() == VmUuid ? "OpaqueRef:vm" : throw new PoolSaysNo("UUID_INVALID", "VM", a[0].AsString());
        pool.Answers["VM.get_by_name_label"] = static a => RpcValue.Strings(
            a[0].AsString() switch { "web, one" => ["OpaqueRef:vm"], "twice" => ["OpaqueRef:vm", "OpaqueRef:w"], _ => (string[])[] });
        pool.Answers["VM.get_record"] = static _ => Vm("web, one", isTemplate: false);
        pool.Answers["VDI.get_all_records"] = static _ => RpcValue.Struct(("OpaqueRef:d", RpcValue.Struct(
            ("uuid", "33333333-3333-3333-3333-333333333333"), ("name_label", "disk"), ("name_description", ""), ("SR", "OpaqueRef:sr"),
            ("virtual_size", new RpcInt(1024)), ("sharable", false), ("read_only", true))));
        pool.Answers["SR.get_all_records"] = static _ => RpcValue.Struct(("OpaqueRef:sr", RpcValue.Struct(("uuid", SrUuid), ("name_label", "fast"))));
    }

    public void Dispose() => pool.Dispose();

    [Fact]
    public async Task A_list_looks_as_in_the_field()
    {
        pool.Answers["VDI.set_name_label"] = static _ => "";

        Ran ran = await pool.XeAsync("vdi-list");

        Assert.Equal("", ran.Error);
        Assert.Equal(
            """
            uuid ( RO)            : 33333333-3333-3333-3333-333333333333
                  name-label ( RW): disk
            name-description ( RO): 
                     sr-uuid ( RO): 22222222-2222-2222-2222-222222222222
                virtual-size ( RO): 1024
                    sharable ( RO): false
                   read-only ( RO): true

            """, ran.Output);
    }

    [Theory]
    [InlineData("vm-list --minimal", VmUuid)]
    [InlineData("vm-list --minimal params=name-label", "web\\, one")]
    [InlineData("vm-list --minimal power-state=halted", "")]
    [InlineData("vm-list --minimal power-state=RUNNING", VmUuid)]
    [InlineData("vm-list --minimal other-config:owner=me", VmUuid)]
    [InlineData("vm-list --minimal other-config:owner=you", "")]
    [InlineData("template-list --minimal params=name-label", "a template")]
    [InlineData("vdi-list --minimal params=sr-name-label sr-uuid=" + SrUuid, "fast")]
    [InlineData("vm-param-get uuid=" + VmUuid + " param-name=other_config param-key=owner", "me")]
    [InlineData("vm-param-get uuid=" + VmUuid + " param-name=tags", "a; b")]
    public async Task Filters_and_minimal_lists_are_for_scripts(string line, string expected) =>
        Assert.Equal(new Ran(0, expected + "\n", ""), await pool.XeAsync(line.Split(' ')));

    [Fact]
    public async Task Json_is_one_document_for_an_answer_and_for_an_error()
    {
        Ran good = await pool.XeAsync("vm-list", "--json", "params=uuid,tags,power-state");
        Ran bad = await pool.XeAsync("vm-start", "uuid=99999999-9999-9999-9999-999999999999", "--json");

        Assert.Equal($$"""[{"uuid":"{{VmUuid}}","tags":["a","b"],"power-state":"running"}]""", JsonNode.Parse(good.Output)!.ToJsonString());
        JsonNode error = JsonNode.Parse(bad.Output)!["error"]!;
        Assert.Equal(("UUID_INVALID", 1), ((string?)error["code"], (int)error["exit_code"]!));
        Assert.Equal(1, bad.ExitCode);
    }

    [Fact]
    public async Task A_session_is_never_shown()
    {
        pool.Answers["task.get_all_records"] = static _ => RpcValue.Struct(("OpaqueRef:t", RpcValue.Struct(("uuid", "t"), ("session", FakePool.Session))));

        Assert.Equal("uuid ( RO): t\n", (await pool.XeAsync("task-list", "params=all")).Output);
        Assert.Equal(2, (await pool.XeAsync("task-list", "params=session")).ExitCode);
    }

    [Fact]
    public async Task A_refusal_has_the_fields_form_and_a_sentence_that_helps()
    {
        pool.Answers["Async.VM.start"] = static _ => throw new PoolSaysNo("VM_BAD_POWER_STATE", "OpaqueRef:vm", "halted", "running");

        Ran ran = await pool.XeAsync("vm-start", "vm=web, one");

        Assert.Equal(
            new Ran(1, "", "Error code: VM_BAD_POWER_STATE\nError parameters: OpaqueRef:vm, halted, running\n"
                + "The VM is running, and for this it must be halted. Nothing was changed. "
                + "Bring it there (vm-start, vm-shutdown, vm-pause, vm-unpause), then call again.\n"),
            ran);
    }

    [Theory]
    [InlineData("migration-list", "migration.get_all_records")]
    [InlineData("orphans-remove uuid=x", "orphans.remove")]
    [InlineData("event-wait class=vm power-state=halted", "event.from")]
    public async Task A_message_that_the_daemon_lacks_is_named(string line, string message)
    {
        Ran ran = await pool.XeAsync(line.Split(' '));

        Assert.Equal(1, ran.ExitCode);
        Assert.Contains($"his pool's daemon does not have {message}", ran.Error, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(2, "vm-strat", "vm=x")] // A verb that is none.
    [InlineData(2, "vm-list", "params=name-lable")]
    [InlineData(2, "vm-list", "power-stat=x")]
    [InlineData(2, "vm-migrate", "vm=web, one", "remote-master=b", "bandwith=1")]
    [InlineData(2, "vm-migrate", "vm=web, one")] // To where?
    [InlineData(2, "vdi-resize", "uuid=x", "disk-size=much")]
    [InlineData(2, "vm-start")]
    [InlineData(2, "vm-start", "vm=web, one", "cheese=true")]
    [InlineData(2, "vm-list", "word")]
    [InlineData(2, "migration-assert-peer-dead", "uuid=x")]
    [InlineData(1, "vm-start", "vm=nobody")]
    [InlineData(1, "vm-start", "vm=twice")]
    [InlineData(1, "vm-migrate", "vm=web, one", "remote-master=b", "keep-source-for=1h")] // No undo here: not promised.
    [InlineData(1, "vm-migrate", "vm=web, one", "remote-master=b", "copy=true")] // It runs.
    [InlineData(4, "vm-migrate", "vm=web, one", "remote-master=b")] // No password for there.
    public async Task Exit_codes_are_stable(int expected, params string[] words)
    {
        Ran ran = await pool.XeAsync(words);

        Assert.Equal((expected, ""), (ran.ExitCode, ran.Output));
        Assert.NotEqual("", ran.Error);
        Assert.DoesNotContain(pool.Calls, static c => c.StartsWith("Async.", StringComparison.Ordinal));
    }

    [Fact]
    public async Task A_wrong_password_is_4_and_no_password_is_4_and_nobody_there_is_3_and_no_pool_is_2()
    {
        Assert.Equal(4, (await FakePool.RunAsync("vm-list", "-s", pool.Url, "-pw", "wrong")).ExitCode);
        Assert.Equal(4, (await FakePool.RunAsync("vm-list", "-s", pool.Url)).ExitCode);
        Assert.Equal(4, (await FakePool.RunAsync("vm-list", "-s", pool.Url, "-pwf", "/no/such/file")).ExitCode);
        Assert.Equal(3, (await FakePool.RunAsync("vm-list", "-s", "http://127.0.0.1:1", "-pw", "x")).ExitCode);
        Assert.Equal(3, (await FakePool.RunAsync("vm-list", "-s", "unix:/no/such/socket")).ExitCode);
        Assert.Equal(2, (await FakePool.RunAsync("vm-list")).ExitCode);
    }

    [Theory]
    [InlineData(200, "<html>hello</html>")]
    [InlineData(200, "")]
    [InlineData(500, "<html>no</html>")]
    [InlineData(302, "")]
    public async Task A_server_that_is_no_pool_is_told_apart(int status, string body)
    {
        pool.Raw = method => method == "VM.get_all_records" ? (status, body) : null;

        Ran ran = await pool.XeAsync("vm-list");

        Assert.Equal(3, ran.ExitCode);
        Assert.StartsWith("Error code: CANNOT_REACH", ran.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_parameter_is_set_in_the_form_that_it_has_and_only_when_all_of_them_can_be()
    {
        List<string> told = [];
        foreach (string message in (string[])["set_name_label", "set_is_a_template", "remove_from_other_config", "add_to_other_config", "add_tags", "set_tags"])
            pool.Answers[$"VM.{message}"] = a => Tell($"{message} {string.Join(' ', a.Skip(1).Select(static v => v is RpcBool b ? $"bool:{b.AsBool()}" : v is RpcArray s ? $"set:{s.AsArray().Count}" : v.AsString()))}");

        Assert.Equal(0, (await pool.XeAsync("vm-param-set", $"uuid={VmUuid}", "name-label=new", "is-a-template=false", "other-config:a=b")).ExitCode);
        Assert.Equal(0, (await pool.XeAsync("vm-param-add", $"uuid={VmUuid}", "param-name=tags", "param-key=c")).ExitCode);
        Assert.Equal(0, (await pool.XeAsync("vm-param-clear", $"uuid={VmUuid}", "param-name=tags")).ExitCode);
        Assert.Equal(2, (await pool.XeAsync("vm-param-set", $"uuid={VmUuid}", "name-label=other", "is-a-template=perhaps")).ExitCode);
        Assert.Equal(["set_name_label new", "set_is_a_template bool:False", "remove_from_other_config a", "add_to_other_config a b", "add_tags c", "set_tags set:0"], told);

        RpcValue Tell(string call)
        {
            told.Add(call);
            return "";
        }
    }

    [Fact]
    public async Task The_first_interrupt_cancels_the_task_and_says_what_became_of_it()
    {
        using Interrupts interrupts = new();
        string status = "pending";
        Serve(() => status, interrupts);
        pool.Answers["task.cancel"] = _ =>
        {
            status = "cancelled";
            return "";
        };

        Ran ran = await FakePool.RunAsync(interrupts, "vm-shutdown", "vm=web, one", "-s", pool.Url, "-pw", "right");

        Assert.Equal(130, ran.ExitCode);
        Assert.Contains("cancelling shutdown", ran.Error, StringComparison.Ordinal);
        Assert.Contains("shutdown was cancelled; what it had begun is undone", ran.Error, StringComparison.Ordinal);
        Assert.Contains("task.destroy", pool.Calls);
    }

    [Fact]
    public async Task The_second_interrupt_leaves_the_task_and_tells_its_uuid()
    {
        using Interrupts interrupts = new();
        Serve(static () => "pending", interrupts);
        pool.Answers["task.cancel"] = _ =>
        {
            interrupts.Count();
            return "";
        };

        Ran ran = await FakePool.RunAsync(interrupts, "vm-shutdown", "vm=web, one", "-s", pool.Url, "-pw", "right");

        Assert.Equal(130, ran.ExitCode);
        Assert.Contains("xe task-cancel uuid=the-task", ran.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_pool_that_is_gone_for_a_moment_does_not_end_the_watch()
    {
        int asked = 0;
        Serve(() => ++asked < 3 ? "pending" : "success", null);
        pool.Raw = method => method == "task.get_record" && asked == 1 && ++asked == 2 ? (503, "") : null;

        Assert.Equal(new Ran(0, "", ""), await pool.XeAsync("vm-shutdown", "vm=web, one"));
    }

    [Fact]
    public void Every_verb_has_help_and_a_name_of_its_own()
    {
        Assert.Equal(VerbTable.Verbs.Count, VerbTable.Verbs.Select(static v => v.Name).Distinct().Count());
        Assert.All(VerbTable.Verbs, static v => Assert.True(v.Summary.EndsWith('.') || v.Summary.EndsWith(").", StringComparison.Ordinal), v.Name));
    }

    [Fact]
    public async Task Help_needs_no_pool_and_lists_every_verb_for_completion()
    {
        Assert.Equal(
            string.Join(',', VerbTable.Verbs.Select(static v => v.Name).Order(StringComparer.Ordinal)) + "\n",
            (await FakePool.RunAsync("help", "--all", "--minimal")).Output);
        Assert.Contains("Example:\n  xe vm-migrate vm=", (await FakePool.RunAsync("help", "vm-migrate")).Output, StringComparison.Ordinal);
        Assert.Equal(2, (await FakePool.RunAsync("help", "vm-migrat")).ExitCode);
    }

    /// <summary>A shutdown whose task has the status; the interrupt comes with the first look at it.</summary>
    private void Serve(Func<string> status, Interrupts? interrupts)
    {
        bool isFirst = true;
        pool.Answers["Async.VM.clean_shutdown"] = static _ => "OpaqueRef:task";
        pool.Answers["task.destroy"] = static _ => "";
        pool.Answers["task.get_record"] = _ =>
        {
            string now = status();
            if (isFirst)
                interrupts?.Count();
            isFirst = false;
            return RpcValue.Struct(
                ("uuid", "the-task"), ("status", now), ("progress", new RpcDouble(0.5)), ("result", ""), ("error_info", RpcValue.Strings([])),
                ("other_config", RpcValue.Struct()));
        };
    }

    private static RpcStruct Vm(string name, bool isTemplate) => RpcValue.Struct(
        ("uuid", isTemplate ? "44444444-4444-4444-4444-444444444444" : VmUuid), ("name_label", name), ("power_state", "Running"), ("is_a_template", isTemplate),
        ("is_a_snapshot", false), ("is_control_domain", false), ("tags", RpcValue.Strings(["a", "b"])), ("other_config", RpcValue.Struct(("owner", "me"))));
}
