// What an operator gets wrong: one clear error with the field's code, and both pools exactly as they were.
using System.Text;
using Demo;
using StorageAccess.Wire;

namespace EndToEnd;

[Collection(SharedPair.Name)]
public class BadInputTests : IAsyncLifetime
{
    private const string Nowhere = "OpaqueRef:00000000-0000-0000-0000-000000000000";
    private static readonly CancellationToken None = CancellationToken.None;
    private readonly ServedPools pools;

    public BadInputTests(ServedPools pools) => this.pools = pools;

    public Task InitializeAsync() => pools.BringHomeAsync();

    public Task DisposeAsync() => Task.CompletedTask;

    [Fact]
    public async Task An_unknown_host_or_storage_is_refused_by_migrate_receive()
    {
        (string host, string storage, _) = await NamesAsync();

        await RefusedAsync(() => pools.B.Api.CallAsync("VM.migrate_receive", None, Nowhere, storage, RpcValue.Struct()), "HANDLE_INVALID", "host", Nowhere);
        await RefusedAsync(() => pools.B.Api.CallAsync("VM.migrate_receive", None, host, Nowhere, RpcValue.Struct()), "HANDLE_INVALID", "SR", Nowhere);
        await RefusedAsync(() => pools.B.Api.CallAsync("host.migrate_receive", None, Nowhere, Nowhere, RpcValue.Struct()), "HANDLE_INVALID", "host", Nowhere);
    }

    [Fact]
    public async Task An_unknown_vm_is_refused() =>
        await RefusedAsync(async () => await MigrateAsync(Nowhere, await TokenAsync()), "HANDLE_INVALID", "VM", Nowhere);

    [Fact]
    public async Task A_vm_that_does_not_run_is_refused()
    {
        string vm = await pools.A.Api.ByNameAsync("VM", "Control domain on host: pool A's host", None);
        string halted = await pools.A.Api.RefAsync("VM.create", None, Journey.VmRecord("halted"));

        await RefusedAsync(async () => await MigrateAsync(halted, await TokenAsync()), "VM_BAD_POWER_STATE", halted, "running", "halted");
        await pools.A.Api.CallAsync("VM.destroy", None, halted);
        Assert.NotEqual(vm, halted);
    }

    [Theory]
    [InlineData("cut short")]
    [InlineData("altered at its end")]
    [InlineData("altered in the middle")]
    [InlineData("another key altered")]
    [InlineData("our key missing")]
    [InlineData("empty")]
    public async Task A_token_that_is_not_what_was_given_out_is_refused(string how)
    {
        Dictionary<string, string> token = (await TokenAsync()).AsMap();
        string key = token.Keys.Single(static k => k.StartsWith("x-", StringComparison.Ordinal));
        string text = token[key];
        switch (how)
        {
            case "cut short": token[key] = text[..^40]; break;
            case "altered at its end": token[key] = text[..^1] + (text[^1] == '0' ? '1' : '0'); break;
            case "altered in the middle": token[key] = text[..60] + (text[60] == 'A' ? 'B' : 'A') + text[61..]; break;
            case "another key altered": token["master"] = "http://somewhere.else"; break;
            case "our key missing": token.Remove(key); break;
            case "empty": token.Clear(); break;
        }

        XenApiException e = await RefusedAsync(async () => await MigrateAsync(await VmAsync(), RpcValue.Map(token)), "INVALID_VALUE", "dest");
        Assert.Contains("token", e.Description[2], StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_token_of_which_one_character_is_changed_anywhere_never_begins_a_migration()
    {
        Dictionary<string, string> token = (await TokenAsync()).AsMap();
        string key = token.Keys.Single(static k => k.StartsWith("x-", StringComparison.Ordinal));
        string vm = await VmAsync();
        for (int i = 0; i < token[key].Length; i += 7)
        {
            Dictionary<string, string> altered = new(token);
            altered[key] = token[key][..i] + (token[key][i] == 'x' ? 'y' : 'x') + token[key][(i + 1)..];
            XenApiException e = await Assert.ThrowsAsync<XenApiException>(() => MigrateAsync(vm, RpcValue.Map(altered)));
            Assert.Equal("INVALID_VALUE", e.Description[0]);
        }
    }

    [Fact]
    public async Task A_token_that_was_used_is_refused_and_a_cancelled_migration_leaves_nothing()
    {
        RpcValue token = await TokenAsync();
        string vm = await VmAsync();
        SortedSet<string> before = await pools.SeeAsync();
        string task = await pools.A.Api.RefAsync(
            "Async.VM.migrate", None, vm, token, true, RpcValue.Struct(("bandwidth_limit", (8 << 20).ToString())));
        while ((await pools.A.Api.CallAsync("task.get_other_config", None, task)).AsMap().GetValueOrDefault("phase") != "mirror")
            await Task.Delay(20);
        await pools.A.Api.CallAsync("task.cancel", None, task);
        while (await pools.A.Api.RefAsync("task.get_status", None, task) is "pending" or "cancelling")
            await Task.Delay(20);

        Assert.Equal("cancelled", await pools.A.Api.RefAsync("task.get_status", None, task));
        await pools.AssertUnchangedAsync(before);
        XenApiException e = await RefusedAsync(() => MigrateAsync(vm, token), "VM_MIGRATE_FAILED", vm);
        Assert.Contains("used already", e.Description[4], StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_storage_that_is_too_small_is_refused()
    {
        (string host, _, _) = await NamesAsync();
        string folder = Directory.CreateDirectory(Path.Combine(pools.B.Folder, "sr", "small")).FullName;
        string small = await pools.B.Api.RefAsync(
            "SR.create", None, host, RpcValue.Struct(("path", folder), ("size", "16777216")), "16777216", "small", "", "vhdfile", "user", false,
            RpcValue.Struct());
        RpcValue token = await pools.B.Api.CallAsync("VM.migrate_receive", None, host, small, RpcValue.Struct());
        string vm = await VmAsync();

        await RefusedAsync(() => MigrateAsync(vm, token), "SR_FULL");
    }

    [Fact]
    public async Task A_vm_whose_disk_is_on_no_storage_is_refused()
    {
        string vm = await VmAsync();
        string vbd = await pools.A.Api.RefAsync("VBD.create", None, Journey.VbdRecord(vm, Nowhere, "5"));

        await RefusedAsync(async () => await MigrateAsync(vm, await TokenAsync()), "HANDLE_INVALID", "VDI", Nowhere);
        await pools.A.Api.CallAsync("VBD.destroy", None, vbd);
    }

    [Fact]
    public async Task A_wrong_password_is_refused()
    {
        using XenApi stranger = new(new Uri(pools.B.Http));
        await RefusedAsync(
            async () =>
            {
                await stranger.LoginAsync("root", "not it", None);
                return "";
            },
            "SESSION_AUTHENTICATION_FAILED", "root");
    }

    [Fact]
    public async Task Calls_that_make_no_sense_are_refused_with_the_fields_codes()
    {
        await RefusedAsync(() => pools.A.Api.CallAsync("VM.fly", None), "MESSAGE_METHOD_UNKNOWN", "VM.fly");
        await RefusedAsync(() => pools.A.Api.CallAsync("VM.migrate", None, "one"), "MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.migrate", "3", "1");
        await RefusedAsync(() => pools.A.Api.CallAsync("VM.migrate_receive", None, "one"), "MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.migrate_receive", "2", "1");
        await RefusedAsync(
            async () => await pools.A.Api.CallAsync(
                "VM.migrate", None, await VmAsync(), await TokenAsync(), true, RpcValue.Struct(("bandwidth_limit", "fast"))),
            "INVALID_VALUE", "options:bandwidth_limit", "fast");
    }

    [Theory]
    [InlineData("<methodCall><methodName>VM.get_all")]
    [InlineData("not XML at all")]
    [InlineData("<!DOCTYPE x [<!ENTITY a 'b'>]><methodCall><methodName>&a;</methodName></methodCall>")]
    [InlineData("")]
    public async Task Malformed_xml_is_answered_with_a_page_and_changes_nothing(string body)
    {
        SortedSet<string> before = await pools.SeeAsync();
        using HttpClient http = new();
        using StringContent content = new(body, Encoding.UTF8, "text/xml");
        using HttpResponseMessage response = await http.PostAsync(new Uri(pools.A.Http), content);

        Assert.Equal(500, (int)response.StatusCode);
        await pools.AssertUnchangedAsync(before);
    }

    private async Task<XenApiException> RefusedAsync(Func<Task<RpcValue>> call, string code, params string[] parameters)
    {
        SortedSet<string> before = await pools.SeeAsync();
        XenApiException e = await Assert.ThrowsAsync<XenApiException>(call);
        string[] expected = [code, .. parameters];
        Assert.True(e.Description.Take(expected.Length).SequenceEqual(expected), string.Join(": ", e.Description));
        await pools.AssertUnchangedAsync(before);
        return e;
    }

    private Task<RpcValue> MigrateAsync(string vm, RpcValue token) => pools.A.Api.CallAsync("VM.migrate", None, vm, token, true, RpcValue.Struct());

    private async Task<RpcValue> TokenAsync()
    {
        (string host, string storage, _) = await NamesAsync();
        return await pools.B.Api.CallAsync("VM.migrate_receive", None, host, storage, RpcValue.Struct());
    }

    private Task<string> VmAsync() => pools.A.Api.ByNameAsync("VM", Journey.VmName, None);

    private async Task<(string Host, string Storage, string Vm)> NamesAsync() => (
        await pools.B.Api.ByNameAsync("Host", Journey.HostName, None), await pools.B.Api.ByNameAsync("SR", Journey.StorageName, None), await VmAsync());
}
