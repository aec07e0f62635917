// SR.update_snapshot_info_*: after the disks of a VM were copied to another pool, its snapshots are told there which disk they are of, and since
// when (research/storage.md 1.5, 7.9). The source sends what it knows; the destination believes it only of disks with the same content.
using System.Text;
using System.Text.Json.Nodes;
using StorageAccess.Wire;

namespace StorageAccess;

internal sealed class SnapshotRelations(StorageLayer layer)
{
    private const int AnswerLimitBytes = 4 << 20;
    private static readonly TimeSpan AnswerLimit = TimeSpan.FromSeconds(60);

    /// <param name="url">The destination's <c>/services/SM?session_id=…</c>.</param>
    /// <param name="pairs">Locations: of the snapshot here, of its copy there.</param>
    /// <param name="isVerified">The destination's certificate must be one that this machine trusts; between pools it is the session in the url that
    /// tells whom we speak to.</param>
    public async Task SendAsync(
        string dbg, SrId sr, VdiId vdi, string url, SrId destination, VdiId destinationVdi, IReadOnlyDictionary<string, string> pairs, bool isVerified,
        CancellationToken cancellationToken)
    {
        Dictionary<VdiId, VdiInfo> here = (await layer.SrScanAsync(dbg, sr, cancellationToken)).Vdis.ToDictionary(static info => info.Vdi);
        JsonObject told = [];
        foreach ((string local, string remote) in pairs)
            told[remote] = StorageWire.Write(Find(here, new VdiId(local)));
        JsonObject parameters = new()
        {
            ["dbg"] = dbg,
            ["sr"] = destination.Value,
            ["vdi"] = destinationVdi.Value,
            ["src_vdi"] = StorageWire.Write(Find(here, vdi)),
            ["snapshot_pairs"] = told,
        };
        await CallAsync(url, "SR.update_snapshot_info_dest", parameters, isVerified, cancellationToken);
    }

    /// <param name="pairs">By the location here, what the source knows of the snapshot.</param>
    /// <exception cref="StorageException">Content_ids_do_not_match: nothing was changed.</exception>
    public async Task RecordAsync(
        string dbg, SrId sr, VdiId vdi, VdiInfo source, IReadOnlyDictionary<VdiId, VdiInfo> pairs, CancellationToken cancellationToken)
    {
        Dictionary<VdiId, VdiInfo> here = (await layer.SrScanAsync(dbg, sr, cancellationToken)).Vdis.ToDictionary(static info => info.Vdi);
        Find(here, vdi);
        foreach ((VdiId local, VdiInfo remote) in pairs)
        {
            if (Find(here, local).ContentId != remote.ContentId)
                throw StorageException.ContentIdsDoNotMatch(local, remote.Vdi);
        }

        foreach ((VdiId local, VdiInfo remote) in pairs)
            await layer.VdiSetSnapshotOfAsync(dbg, sr, local, remote.SnapshotTime, vdi, cancellationToken);
    }

    private static VdiInfo Find(Dictionary<VdiId, VdiInfo> vdis, VdiId vdi) =>
        vdis.TryGetValue(vdi, out VdiInfo? found) ? found : throw StorageException.VdiDoesNotExist(vdi);

    private static async Task CallAsync(string url, string call, JsonObject parameters, bool isVerified, CancellationToken cancellationToken)
    {
        if (!Uri.TryCreate(url, UriKind.Absolute, out Uri? address) || address.Scheme is not ("http" or "https"))
            throw StorageException.Internal($"{call}: the destination's url is not http or https");
        using SocketsHttpHandler handler = new() { AllowAutoRedirect = false, UseProxy = false };
        // Encrypted to whoever answers at that address, as in the field: there is no certificate to compare with, pools sign their own.
        if (!isVerified)
            handler.SslOptions.RemoteCertificateValidationCallback = static (_, certificate, _, _) => certificate is not null;
        using HttpClient http = new(handler) { Timeout = AnswerLimit, MaxResponseContentBufferSize = AnswerLimitBytes };
        try
        {
            using StringContent body = new(XmlRpc.WriteCall(call, StorageXml.FromJson(parameters)), Encoding.UTF8, "text/xml");
            using HttpResponseMessage response = await http.PostAsync(address, body, cancellationToken);
            response.EnsureSuccessStatusCode();
            RpcStruct answer = XmlRpc.ReadResponse(await response.Content.ReadAsStringAsync(cancellationToken)).AsStruct();
            if (answer.Get("Status").AsString() != "Success")
                throw StorageWire.ReadError(new JsonRpcException(StorageXml.ToJson(answer.Get("ErrorDescription")) ?? ""));
        }
        catch (Exception e) when (e is HttpRequestException or RpcFormatException or TaskCanceledException { InnerException: TimeoutException })
        {
            // Not the url: it holds a session.
            throw StorageException.Internal($"{call} at {address.Host}:{address.Port}: {e.Message}");
        }
    }
}
