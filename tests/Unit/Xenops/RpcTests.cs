using System.Diagnostics;
using System.Text.Json.Nodes;
using Platform;
using Support;
using Xenops;
using static Unit.XenopsTests.Rig;

namespace Unit.XenopsTests;

public sealed class RpcTests : IAsyncDisposable
{
    private const string TargetArguments = "\"migration\":\"m\",\"host\":\"127.0.0.1\",\"secret\":\"s\"";
    private const string NoFingerprint = "\"fingerprint\":\"0000\"";

    private readonly Host host = new(new SharedDisks());

    public ValueTask DisposeAsync() => host.DisposeAsync();

    [Theory]
    [InlineData("VM.start", "{}", """["Internal_error","the parameter \"id\" is missing or is no string"]""")]
    [InlineData("VM.start", """{"id":7}""", """["Internal_error","the parameter \"id\" is missing or is no string"]""")]
    [InlineData("VM.start", """{"id":"x"}""", """["Does_not_exist",["VM","x"]]""")]
    [InlineData("VM.remove", """{"id":"x"}""", """["Does_not_exist",["VM","x"]]""")]
    [InlineData("VM.stat", """{"id":"x"}""", """["Does_not_exist",["VM","x"]]""")]
    [InlineData("VM.pause", """{"id":"halted"}""", """["Bad_power_state",["Halted","Running"]]""")]
    [InlineData("VM.unpause", """{"id":"halted"}""", """["Bad_power_state",["Halted","Paused"]]""")]
    [InlineData("VM.shutdown", """{"id":"halted","clean":true}""", """["Bad_power_state",["Halted","Running"]]""")]
    [InlineData("VM.shutdown", """{"id":"halted","clean":false}""", """["Bad_power_state",["Halted","Running"]]""")]
    [InlineData("VM.shutdown", """{"id":"halted"}""", """["Internal_error","the parameter \"clean\" is missing or is no boolean"]""")]
    [InlineData("VM.start", """{"id":"running"}""", """["Bad_power_state",["Running","Halted"]]""")]
    [InlineData("VM.remove", """{"id":"running"}""", """["Bad_power_state",["Running","Halted"]]""")]
    [InlineData("VM.unpause", """{"id":"running"}""", """["Bad_power_state",["Running","Paused"]]""")]
    [InlineData("VM.add", """{"vm":{"id":"halted"}}""", """["Already_exists",["VM","halted"]]""")]
    [InlineData("VM.add", """{"vm":{"id":"x"}}""", """["Internal_error","vm.id \"x\" is not a uuid"]""")]
    [InlineData("VM.add", """{"vm":{"id":"new","domain":"xen"}}""", """["Unimplemented","a domain of type \"xen\"; there is simulator"]""")]
    [InlineData("VM.levitate", "{}", """["Unimplemented","VM.levitate"]""")]
    [InlineData("MIGRATE.precopy", """{"id":"halted",TARGET,"port":1,NOPRINT}""", """["Bad_power_state",["Halted","Running"]]""")]
    [InlineData(
        "MIGRATE.precopy",
        """{"id":"running",TARGET,"port":0,NOPRINT}""",
        """["Internal_error","the parameter \"port\" is missing or is no port number"]""")]
    [InlineData(
        "MIGRATE.precopy",
        """{"id":"running",TARGET,"port":1,NOPRINT}""",
        """["Internal_error","the fingerprint \"0000\" is not the hex of a SHA-256"]""")]
    [InlineData("MIGRATE.progress", """{"id":"running"}""", """["Does_not_exist",["migration of VM","running"]]""")]
    [InlineData("MIGRATE.stop", """{"id":"running"}""", """["Does_not_exist",["migration of VM","running"]]""")]
    [InlineData("MIGRATE.transfer", """{"id":"running"}""", """["Does_not_exist",["migration of VM","running"]]""")]
    [InlineData("MIGRATE.freeze", """{"id":"running"}""", """["Does_not_exist",["migration of VM","running"]]""")]
    [InlineData(
        "MIGRATE.resume",
        """{"id":"running","reattach":"yes"}""",
        """["Internal_error","the parameter \"reattach\" is missing or is no boolean"]""")]
    [InlineData("MIGRATE.resume", """{"id":"running"}""", null)]
    [InlineData("MIGRATE.abort_stream", """{"id":"x"}""", """["Does_not_exist",["VM","x"]]""")]
    [InlineData("MIGRATE.abort_stream", """{"id":"running"}""", null)]
    [InlineData("MIGRATE.receive", """{"migration":"m2","vm":{"id":"running"}}""", """["Already_exists",["VM","running"]]""")]
    [InlineData("MIGRATE.receive", """{"migration":"m1","vm":{"id":"new"}}""", """["Already_exists",["migration","m1"]]""")]
    [InlineData(
        "MIGRATE.receive",
        """{"migration":"","vm":{"id":"new"}}""",
        """["Internal_error","the migration's id is not 1 to 128 ASCII characters"]""")]
    [InlineData("MIGRATE.loaded", """{"migration":"x","timeout_ms":1}""", """["Does_not_exist",["migration","x"]]""")]
    [InlineData(
        "MIGRATE.loaded",
        """{"migration":"m1","timeout_ms":-1}""",
        """["Internal_error","the parameter \"timeout_ms\" is no number of milliseconds"]""")]
    [InlineData(
        "MIGRATE.loaded",
        """{"migration":"m1","timeout_ms":1}""",
        """["Internal_error","migration m1 is not loaded after 1 ms: no stream came yet"]""")]
    [InlineData("MIGRATE.run", """{"migration":"x"}""", """["Does_not_exist",["migration","x"]]""")]
    [InlineData("MIGRATE.run", """{"migration":"m1"}""", """["Internal_error","migration m1 is not loaded: no stream came yet"]""")]
    [InlineData("MIGRATE.discard", """{"migration":"x"}""", null)]
    [InlineData("VM.start", """{"id":"incoming"}""", """["Bad_power_state",["Incoming","Halted"]]""")]
    public async Task Each_refusal_has_the_fields_variant(string method, string parameters, string? error)
    {
        Dictionary<string, string> ids = new()
        {
            ["halted"] = Guid.NewGuid().ToString(),
            ["running"] = Guid.NewGuid().ToString(),
            ["incoming"] = Guid.NewGuid().ToString(),
            ["new"] = Guid.NewGuid().ToString(),
        };
        host.Domains.Add(BareVm(ids["halted"]));
        host.Domains.Add(BareVm(ids["running"]));
        await host.Domains.StartAsync("", ids["running"], CancellationToken.None);
        await host.Destination.ReceiveAsync("", "m1", BareVm(ids["incoming"]), CancellationToken.None);
        string text = parameters.Replace("TARGET", TargetArguments).Replace("NOPRINT", NoFingerprint);
        foreach ((string name, string id) in ids)
        {
            text = text.Replace($"\"{name}\"", $"\"{id}\"");
            error = error?.Replace($"\"{name}\"]", $"\"{id}\"]");
        }

        JsonObject answer = await CallAsync($$"""{"method":"{{method}}","params":[{{text}}],"id":3}""");
        Assert.Equal(error is null ? null : JsonNode.Parse(error)!.ToJsonString(), answer["error"]?.ToJsonString());
    }

    [Theory]
    [InlineData("\"memory_bytes\":4194305")]
    [InlineData("\"memory_bytes\":2147483648")]
    [InlineData("\"memory_bytes\":\"much\"")]
    [InlineData("\"vbds\":null")]
    [InlineData("\"vbds\":[null]")]
    [InlineData("\"vbds\":[{\"device\":\"xvda\"}]")]
    [InlineData("\"vbds\":[{\"device\":\"../a\",\"sr\":\"s\",\"vdi\":\"v\"}]")]
    [InlineData("\"vbds\":[{\"device\":\"a\",\"sr\":\"s\",\"vdi\":\"v\",\"mode\":\"XX\"}]")]
    [InlineData("\"vbds\":[{\"device\":\"a\",\"sr\":\"s\",\"vdi\":\"v\"},{\"device\":\"a\",\"sr\":\"s\",\"vdi\":\"w\"}]")]
    [InlineData("\"platform\":{\"a\":null}")]
    [InlineData("\"platform\":null")]
    [InlineData("\"domain\":null")]
    [InlineData("\"name\":null")]
    public async Task A_bad_record_is_refused_and_nothing_is_added(string member)
    {
        JsonObject answer = await CallAsync(
            "{\"method\":\"VM.add\",\"params\":[{\"vm\":{\"id\":\"" + Id + "\"," + member + "}}],\"id\":1}");
        Assert.Equal("Internal_error", answer["error"]![0]!.ToString());
        Assert.Empty(host.Domains.List());
    }

    [Fact]
    public async Task The_process_serves_its_socket_and_ends_cleanly_on_sigterm_with_a_guest_running()
    {
        using TemporaryDirectory folder = new();
        string socket = folder.File("xenopsd.sock");
        ProcessStartInfo start = new("dotnet") { RedirectStandardError = true };
        foreach (string argument in new[]
        {
            typeof(Domains).Assembly.Location, "--socket", socket, "--state", folder.File("state"), "--storage-socket", folder.File("none"),
        })
        {
            start.ArgumentList.Add(argument);
        }

        using Process daemon = Process.Start(start)!;
        Task<string> log = daemon.StandardError.ReadToEndAsync();
        try
        {
            await UntilAsync(() => File.Exists(socket) || daemon.HasExited, "the socket is there");
            using XenopsClient client = new(socket, TimeSpan.FromSeconds(10));
            await client.VmAddAsync("t", BareVm(Id), CancellationToken.None);
            await client.VmStartAsync("t", Id, CancellationToken.None);
            Assert.Equal("Running", (await client.VmStatAsync("t", Id, CancellationToken.None)).State);
            Assert.Equal([Id], (await client.VmListAsync("t", CancellationToken.None)).Select(static v => v.Id));
            XenopsException e = await Assert.ThrowsAsync<XenopsException>(() => client.VmUnpauseAsync("t", Id, CancellationToken.None));
            Assert.Equal("Bad_power_state", e.Tag);
            Assert.Equal(["Running", "Paused"], e.Arguments);
            Assert.True(Posix.TryKill(daemon.Id, 15));
            await daemon.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(10));
            Assert.Equal(0, daemon.ExitCode);
            Assert.False(File.Exists(socket));
            Assert.Contains("stops", await log);
        }
        finally
        {
            if (!daemon.HasExited)
                daemon.Kill();
        }
    }

    private static Vm BareVm(string id) => new() { Id = id, MemoryBytes = 4 << 20 };

    private async Task<JsonObject> CallAsync(string request) =>
        JsonNode.Parse(await host.Server.HandleAsync(request, CancellationToken.None))!.AsObject();
}
