// What a listener on the wire, a reader of the logs and of the process list see of a whole migration: none of its secrets.
using System.Diagnostics;
using System.Net.Security;
using System.Security.Cryptography;
using System.Text;
using Demo;
using Migration;
using Platform;
using StorageAccess.Wire;
using Support;
using Xapi.Migration;

namespace EndToEnd;

public class SecretsTests
{
    private static readonly CancellationToken None = CancellationToken.None;

    [SkippableFact]
    public async Task The_wire_the_logs_and_the_process_list_of_a_migration_hold_none_of_its_secrets()
    {
        Skip.IfNot(Tool.Exists("python3"), Tool.Missing("python3"));
        Skip.IfNot(Environment.IsPrivilegedProcess, "listening on an interface needs root");
        ServedPools pools = new();
        await pools.InitializeAsync();
        using TemporaryDirectory folder = new();
        string capture = folder.File("wire");
        try
        {
            Dictionary<string, string> secrets = [];
            string seen;
            using (Process listener = Process.Start(new ProcessStartInfo(
                "python3", [Path.Combine(AppContext.BaseDirectory, "capture.py"), capture])
            { RedirectStandardOutput = true })!)
            {
                try
                {
                    Assert.Equal("ready", await listener.StandardOutput.ReadLineAsync());
                    seen = await MigrateAsync(pools, secrets);
                }
                finally
                {
                    const int sigterm = 15;
                    Posix.TryKill(listener.Id, sigterm);
                    await listener.WaitForExitAsync();
                }
            }

            Assert.True(secrets.Count >= 7, string.Join(", ", secrets.Keys));
            byte[] wire = await File.ReadAllBytesAsync(capture);
            Assert.True(wire.Length > 1 << 20, $"only {wire.Length} bytes were heard: this proves nothing");
            foreach ((string what, string secret) in secrets)
            {
                Assert.True(secret.Length >= 12, what);
                Assert.True(wire.AsSpan().IndexOf(Encoding.UTF8.GetBytes(secret)) < 0, $"{what} was on the wire");
                Assert.False(seen.Contains(secret, StringComparison.Ordinal), $"{what} was in a process list or a task");
                foreach (string log in new[] { pools.A, pools.B }.SelectMany(static pool => Directory.GetFiles(pool.Folder, "*.log", SearchOption.AllDirectories)))
                    Assert.False((await ReadAsync(log)).Contains(secret, StringComparison.Ordinal), $"{what} is in {log}");
            }

            // The control: what is not secret is heard and read.
            Assert.True(wire.AsSpan().IndexOf("planted in the clear"u8) >= 0);
        }
        finally
        {
            await pools.DisposeAsync();
        }
    }

    /// <returns>What was seen beside the wire: command lines of all processes while it ran, and the task's record.</returns>
    private static async Task<string> MigrateAsync(ServedPools pools, Dictionary<string, string> secrets)
    {
        StringBuilder seen = new();
        using XenApi a = Pinned(pools.A), b = Pinned(pools.B);
        await a.LoginAsync("root", pools.A.Password, None);
        await b.LoginAsync("root", pools.B.Password, None);
        string host = await b.ByNameAsync("host", Journey.HostName, None);
        RpcValue token = await b.CallAsync("VM.migrate_receive", None, host, await b.ByNameAsync("SR", Journey.StorageName, None), RpcValue.Struct());
        MigrationToken parsed = MigrationToken.Parse(token.AsMap());
        string task = await a.RefAsync(
            "Async.VM.migrate", None, await a.ByNameAsync("VM", Journey.VmName, None), token, true, RpcValue.Struct(("bandwidth_limit", $"{96 << 20}")));
        while ((await a.CallAsync("task.get_status", None, task)).AsString() == "pending")
        {
            foreach (int id in ProcessTable.Ids())
                seen.AppendJoin(' ', ProcessTable.CommandLineOf(id)).AppendLine();
            await Task.Delay(50);
        }

        RpcStruct record = (await a.CallAsync("task.get_record", None, task)).AsStruct();
        Assert.True(record.Get("status").AsString() == "success", string.Join(": ", record.Get("error_info").AsArray().Select(static v => v.AsString())));
        seen.AppendJoin('\n', record.Get("other_config").AsMap().Select(static e => $"{e.Key}={e.Value}"));
        using (HttpClient clear = new())
        {
            using StringContent nothing = new("planted in the clear");
            await clear.PostAsync(new Uri(pools.A.Http), nothing);
        }

        secrets["pool A's password"] = pools.A.Password;
        secrets["the token's secret"] = parsed.Secret.Reveal();
        secrets["the token"] = token.AsMap()[MigrationToken.Key];
        secrets["pool A's session"] = a.Session;
        secrets["pool B's session"] = b.Session;
        using TemporaryDirectory copy = new(); // The daemon has its own locked.
        foreach (string file in Directory.GetFiles(Path.Combine(pools.A.Folder, "state"), "migrations.db*"))
            File.Copy(file, copy.File(Path.GetFileName(file)));
        using SqliteFile journal = SqliteFile.Open(copy.File("migrations.db"), "");
        string prepared = journal.Query(
            "SELECT body FROM record WHERE role = 'source' AND body LIKE '%\"prepared\"%' LIMIT 1", static row => row.GetString(0)).Single();
        PreparedDestination made = ((SourceRecord.Prepared)MigrationJson.Read<SourceRecord>(prepared)).Destination;
        secrets["the memory stream's secret"] = made.Memory.Secret;
        foreach (DiskTarget disk in made.Disks)
            secrets[$"the export name of {disk.Device}"] = disk.Name;
        return seen.ToString();
    }

    private static XenApi Pinned(ServedPool pool)
    {
        byte[] fingerprint = Convert.FromHexString(System.Text.Json.Nodes.JsonNode.Parse(
            File.ReadAllText(Path.Combine(pool.Folder, "state", "endpoints.json")))!["fingerprint"]!.GetValue<string>().Replace(":", "", StringComparison.Ordinal));
        return new XenApi(new Uri(pool.Https), new SocketsHttpHandler
        {
            SslOptions = new SslClientAuthenticationOptions
            {
                RemoteCertificateValidationCallback = (_, certificate, _, _) => SHA256.HashData(certificate!.GetRawCertData()).AsSpan().SequenceEqual(fingerprint),
            },
        });
    }

    private static async Task<string> ReadAsync(string path)
    {
        await using FileStream stream = new(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite);
        using StreamReader reader = new(stream);
        return await reader.ReadToEndAsync();
    }
}
