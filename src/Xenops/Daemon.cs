// The daemon around Domains: arguments, guests that outlived an earlier one, the unix socket, signals. SIGTERM is a clean end: no new call is taken, guests are powered off,
// disks are given back, the socket is removed, exit 0. A start that is refused says why on standard error and exits 2.
using System.Net;
using System.Net.Sockets;
using System.Security.Cryptography.X509Certificates;
using Microsoft.AspNetCore.Builder;
using Microsoft.Extensions.Hosting;
using Nbd;
using Platform;
using StorageAccess;
using StorageAccess.Wire;
using Xenops.Guests;
using Xenops.Streaming;

namespace Xenops;

public static class Daemon
{
    private const string Usage =
        "usage: xenopsd --socket PATH --state DIR --storage-socket PATH [--listen 127.0.0.1] [--certificate PEM]";

    private static readonly TimeSpan StorageDeadline = TimeSpan.FromSeconds(30);

    public static async Task<int> RunAsync(string[] args)
    {
        try
        {
            Options options = Options.Parse(args);
            Posix.Detach();
            await ServeAsync(options);
            return 0;
        }
        catch (Exception e) when (e is ArgumentException or IOException or UnauthorizedAccessException or SocketException)
        {
            await Console.Error.WriteLineAsync($"xenopsd: {e.Message}");
            return 2;
        }
    }

    private static async Task ServeAsync(Options options)
    {
        Directory.CreateDirectory(options.State);
        using FileLock stateLock = FileLock.TryTake(Path.Combine(options.State, "lock"), isExclusive: true)
            ?? throw new IOException($"another xenopsd runs on {options.State}");
        SocketFile.RemoveStale(options.Socket);
        TimeProvider time = TimeProvider.System;
        using X509Certificate2 certificate = options.Certificate is null
            ? StreamTls.CreateCertificate(time.GetUtcNow())
            : StreamTls.ReadCertificate(options.Certificate);
        using JsonRpcClient rpc = new(options.StorageSocket, StorageDeadline);
        DiskSource disks = new(new StorageClient(rpc), Path.Combine(options.State, "datapaths"));
        ProcessBackend simulator = new(
            Path.Combine(AppContext.BaseDirectory, "xenopsd"), Path.Combine(options.State, "guests"), Path.Combine(options.State, "oracle"), Log);
        await using Domains domains = new(new Dictionary<string, IDomainBackend> { ["simulator"] = simulator }, disks, time, Log);
        // Before the first call: nobody may start a VM whose guest is alive and not known yet.
        foreach (string failure in await domains.AdoptAsync(CancellationToken.None))
            Log($"left by an earlier xenopsd, tried again later: {failure}");
        XenopsServer server = new(domains, new MigrationSource(domains), new MigrationDestination(domains, options.Listen, certificate));

        await using WebApplication web = RpcSocket.Build(options.Socket, server.HandleAsync);
        await web.StartAsync();
        RpcSocket.Protect(options.Socket);
        Log($"serves {options.Socket}");
        await web.WaitForShutdownAsync();
        Log("stops");
        File.Delete(options.Socket);
    }

    internal static async Task<IBlockDevice> OpenDiskAsync(string uri, CancellationToken cancellationToken)
    {
        NbdUri address = NbdUri.TryParse(uri) ?? throw XenopsException.Internal($"the storage offers \"{uri}\", which is no NBD URI");
        return await NbdClient.ConnectAsync(address, new NbdClientOptions(), cancellationToken);
    }

    private static void Log(string line) => Console.Error.WriteLine($"{DateTimeOffset.UtcNow:O} xenopsd: {line}");

    private sealed record Options(string Socket, string State, string StorageSocket, IPAddress Listen, string? Certificate)
    {
        public static Options Parse(string[] args)
        {
            Dictionary<string, string> given = [];
            for (int i = 0; i < args.Length; i += 2)
            {
                if (args[i] is not ("--socket" or "--state" or "--storage-socket" or "--listen" or "--certificate"))
                    throw new ArgumentException($"unknown option {args[i]}; {Usage}");
                if (i + 1 == args.Length || !given.TryAdd(args[i], args[i + 1]))
                    throw new ArgumentException($"{args[i]} needs one value, once; {Usage}");
            }

            string Required(string name) => given.GetValueOrDefault(name) ?? throw new ArgumentException($"{name} is missing; {Usage}");
            string listen = given.GetValueOrDefault("--listen", "127.0.0.1");
            return new Options(
                Path.GetFullPath(Required("--socket")),
                Path.GetFullPath(Required("--state")),
                Required("--storage-socket"),
                IPAddress.TryParse(listen, out IPAddress? address) ? address
                    : throw new ArgumentException($"--listen {listen} is no IP address"),
                given.GetValueOrDefault("--certificate"));
        }
    }
}
