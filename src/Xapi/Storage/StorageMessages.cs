// SR, PBD and VDI messages: the pool's rows and the storage access layer, kept in step. The layer acts first and the row follows, so that a crash in between
// leaves storage without a row (the next scan finds it), never a row without storage.
using SmapiV1Adapter;
using StorageAccess;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Rpc;

namespace Xapi.Storage;

public sealed class StorageMessages(StorageHost storage, PoolDatabase database, string hostRef)
{
    private StorageLayer Layer => storage.Layer;

    public void AddTo(MessageTable messages)
    {
        messages.Add("SR.create", CreateSrAsync);
        messages.Add("SR.scan", async (context, a) =>
        {
            await ScanAsync(context, a[0].AsString());
            return "";
        });
        messages.Add("SR.update", async (context, a) =>
        {
            await UpdateAsync(context, a[0].AsString());
            return "";
        });
        messages.Add("SR.probe", async (context, a) => ProbeAnswer.Xml(await ProbeAsync(context, a)));
        messages.Add("SR.probe_ext", async (context, a) => ProbeAnswer.Records(await ProbeAsync(context, a), a[2].AsString()));
        messages.Add("SR.introduce", (context, a) => IntroduceSr(a));
        messages.Add("SR.destroy", DestroySrAsync);
        messages.Add("SR.forget", (context, a) =>
        {
            string sr = a[0].AsString();
            RequireUnplugged(sr);
            database.Transaction(() => Forget(sr));
            return "";
        });
        messages.Add("PBD.plug", async (context, a) =>
        {
            await PlugAsync(Dbg(context), a[0].AsString(), context.CancellationToken);
            return "";
        });
        messages.Add("PBD.unplug", UnplugAsync);
        messages.Add("VDI.create", CreateVdiAsync);
        messages.Add("VDI.destroy", DestroyVdiAsync);
        messages.Add("VDI.forget", (context, a) => ForgetVdi(a[0].AsString()));
        messages.Add("VDI.generate_config", GenerateConfigAsync);
        messages.Add("host.call_plugin", CallPluginAsync);
        messages.Add("VDI.snapshot", (context, a) => CopyVdiAsync(context, a[0].AsString(), a[1].AsMap(), isSnapshot: true));
        messages.Add("VDI.clone", (context, a) => CopyVdiAsync(context, a[0].AsString(), a[1].AsMap(), isSnapshot: false));
        messages.Add("VDI.resize", ResizeVdiAsync);
    }

    /// <summary>Makes the SR, its PBD for this host, plugs it and looks what is in it. What was made is undone when a later step fails.</summary>
    private async Task<RpcValue> CreateSrAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        Dictionary<string, string> deviceConfig = a[1].AsMap();
        string type = a[5].AsString().ToLowerInvariant();
        (string sr, string pbd) = database.Transaction(() =>
        {
            string reference = database.Create(
                "SR", ("name_label", a[3]), ("name_description", a[4]), ("type", type), ("content_type", a[6]), ("shared", a[7]), ("sm_config", a[8]));
            return (reference, database.Create("PBD", ("host", hostRef), ("SR", reference), ("device_config", RpcValue.Map(deviceConfig))));
        });
        SrId id = Id(sr);
        try
        {
            Layer.RegisterSr(id, type, deviceConfig);
            IReadOnlyDictionary<string, string> kept = await Layer.SrCreateAsync(
                Dbg(context), id, a[3].AsString(), a[4].AsString(), deviceConfig, a[2].AsLong(), context.CancellationToken);
            database.Set("PBD", pbd, "device_config", RpcValue.Map(kept));
            await PlugAsync(Dbg(context), pbd, context.CancellationToken);
            await ScanAsync(context, sr);
            return sr;
        }
        catch
        {
            database.Transaction(() =>
            {
                database.Destroy("PBD", pbd);
                Forget(sr);
            });
            throw;
        }
    }

    /// <summary>The row of an SR that is there already; its PBDs are made and plugged by the caller. An empty uuid: a new one.</summary>
    private RpcValue IntroduceSr(IReadOnlyList<RpcValue> a)
    {
        string uuid = a[0].AsString(), type = a[3].AsString().ToLowerInvariant();
        storage.BackendOf(type);
        return database.Transaction(() =>
        {
            if (uuid.Length != 0 && database.FindByUuid("SR", uuid) is not null)
                throw new XapiException("SR_UUID_EXISTS", uuid);
            List<(string, RpcValue)> fields =
            [
                ("name_label", a[1]), ("name_description", a[2]), ("type", type), ("content_type", a[4]), ("shared", a[5]), ("sm_config", a[6]),
            ];
            if (uuid.Length != 0)
                fields.Add(("uuid", uuid));
            return (RpcValue)database.Create("SR", fields);
        });
    }

    private async Task PlugAsync(string dbg, string pbd, CancellationToken cancellationToken)
    {
        string sr = database.GetRef("PBD", pbd, "SR");
        IReadOnlyDictionary<string, string> deviceConfig = database.GetMap("PBD", pbd, "device_config");
        Layer.RegisterSr(Id(sr), database.GetString("SR", sr, "type"), deviceConfig);
        await Layer.SrAttachAsync(dbg, Id(sr), deviceConfig, cancellationToken);
        database.Set("PBD", pbd, "currently_attached", true);
    }

    /// <summary>
    /// Plugs again what this host had plugged and what a start of the machine has taken down. One that cannot be is recorded as unplugged.
    /// </summary>
    /// <returns>One sentence for each.</returns>
    public async Task<IReadOnlyList<string>> ReplugAsync(CancellationToken cancellationToken)
    {
        List<string> told = [];
        HashSet<SrId> attached = [.. Layer.SrList()];
        foreach (string pbd in database.All("PBD").Where(pbd => database.GetRef("PBD", pbd, "host") == hostRef))
        {
            SrId sr = Id(database.GetRef("PBD", pbd, "SR"));
            if (!database.GetBool("PBD", pbd, "currently_attached") || attached.Contains(sr))
                continue;
            try
            {
                await PlugAsync("restart", pbd, cancellationToken);
                told.Add($"SR {sr} is plugged again");
            }
            catch (StorageException e)
            {
                database.Set("PBD", pbd, "currently_attached", false);
                told.Add($"SR {sr} could not be plugged again and is unplugged now: {e.Message}");
            }
        }

        return told;
    }

    private async Task<RpcValue> UnplugAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        string pbd = a[0].AsString();
        await Layer.SrDetachAsync(Dbg(context), Id(database.GetRef("PBD", pbd, "SR")), context.CancellationToken);
        database.Set("PBD", pbd, "currently_attached", false);
        return "";
    }

    private async Task ScanAsync(CallContext context, string sr)
    {
        IReadOnlyDictionary<string, string> before = VdiRows.Locations(database, sr);
        VdiRows.Reconcile(database, sr, before, await Layer.SrScanAsync(Dbg(context), Id(sr), context.CancellationToken));
    }

    /// <summary>The SR's sizes, without looking at its VDIs.</summary>
    private async Task UpdateAsync(CallContext context, string sr)
    {
        SrInfo info = await Layer.SrStatAsync(Dbg(context), Id(sr), context.CancellationToken);
        database.Transaction(() => VdiRows.RecordSpace(database, sr, info));
    }

    private Task<ProbeResult> ProbeAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        RequireThisHost(a[0].AsString());
        return storage.BackendOf(a[2].AsString()).SrProbeAsync(Dbg(context), a[1].AsMap(), a[3].AsMap(), context.CancellationToken);
    }

    private async Task<RpcValue> DestroySrAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        string sr = a[0].AsString();
        RequireUnplugged(sr);
        await Layer.SrDestroyAsync(Dbg(context), Id(sr), context.CancellationToken);
        database.Transaction(() => Forget(sr));
        return "";
    }

    private void RequireUnplugged(string sr)
    {
        if (database.GetSet("SR", sr, "PBDs").Any(pbd => database.GetBool("PBD", pbd, "currently_attached")))
            throw new XapiException("SR_HAS_PBD", sr);
    }

    private void Forget(string sr)
    {
        foreach (string vdi in database.GetSet("SR", sr, "VDIs"))
            database.Destroy("VDI", vdi);
        database.Destroy("SR", sr);
    }

    private async Task<RpcValue> CreateVdiAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        RpcStruct record = a[0].AsStruct();
        string sr = record.Get("SR").AsString();
        VdiInfo made = await Layer.VdiCreateAsync(
            Dbg(context),
            Id(sr),
            new VdiInfo
            {
                Vdi = new VdiId(""),
                NameLabel = record.Get("name_label").AsString(),
                NameDescription = record.Get("name_description").AsString(),
                Type = record.Get("type").AsString(),
                Sharable = record.Get("sharable").AsBool(),
                ReadOnly = record.Get("read_only").AsBool(),
                VirtualSizeBytes = record.Get("virtual_size").AsLong(),
                SmConfig = record.Find("sm_config")?.AsMap() ?? [],
            },
            context.CancellationToken);
        string vdi = VdiRows.Ensure(database, sr, made);
        if (record.Find("other_config") is { } otherConfig)
            database.Set("VDI", vdi, "other_config", otherConfig);
        return vdi;
    }

    private async Task<RpcValue> DestroyVdiAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        await DestroyVdiAsync(Dbg(context), a[0].AsString(), context.CancellationToken);
        return "";
    }

    /// <summary>The VDI's storage and its row; a row that a driver's call-back took away already is no error.</summary>
    public async Task DestroyVdiAsync(string dbg, string vdi, CancellationToken cancellationToken)
    {
        SrId sr = Id(database.GetRef("VDI", vdi, "SR"));
        await Layer.VdiDestroyAsync(dbg, sr, new VdiId(database.GetString("VDI", vdi, "location")), cancellationToken);
        database.Transaction(() =>
        {
            if (database.Exists("VDI", vdi))
                database.Destroy("VDI", vdi);
        });
    }

    /// <summary>The row goes, the disk stays: a driver that made the disk go calls this too.</summary>
    private RpcValue ForgetVdi(string vdi) => database.Transaction(() =>
    {
        if (database.GetSet("VDI", vdi, "VBDs").FirstOrDefault(vbd => database.GetBool("VBD", vbd, "currently_attached")) is { } user)
            throw new XapiException("VDI_IN_USE", vdi, "forget", $"VBD {user} is attached");
        database.Destroy("VDI", vdi);
        return (RpcValue)"";
    });

    private async Task<RpcValue> GenerateConfigAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        RequireThisHost(a[0].AsString());
        string vdi = a[1].AsString();
        string sr = database.GetRef("VDI", vdi, "SR");
        if (storage.BackendOf(database.GetString("SR", sr, "type")) is not SmapiV1Backend driver)
            throw StorageException.Unimplemented("VDI.generate_config");
        VdiId location = new(database.GetString("VDI", vdi, "location"));
        return await driver.VdiGenerateConfigAsync(Dbg(context), Id(sr), location, context.CancellationToken);
    }

    private async Task<RpcValue> CallPluginAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        RequireThisHost(a[0].AsString());
        return await storage.Plugins.CallAsync(a[1].AsString(), a[2].AsString(), context.Session.Ref, a[3], context.CancellationToken);
    }

    private void RequireThisHost(string host)
    {
        if (!database.Exists("host", host))
            throw new XapiException("HANDLE_INVALID", "host", host);
        if (host != hostRef)
            throw new XapiException("HOST_OFFLINE", host);
    }

    /// <param name="driverParams">The caller's, for the driver: the VDI's own sm_config is none of them.</param>
    private async Task<RpcValue> CopyVdiAsync(
        CallContext context, string vdi, IReadOnlyDictionary<string, string> driverParams, bool isSnapshot)
    {
        string sr = database.GetRef("VDI", vdi, "SR");
        VdiInfo source = await Layer.VdiStatAsync(
            Dbg(context), Id(sr), new VdiId(database.GetString("VDI", vdi, "location")), context.CancellationToken);
        source = source with { SmConfig = driverParams };
        VdiInfo copy = isSnapshot
            ? await Layer.VdiSnapshotAsync(Dbg(context), Id(sr), source, context.CancellationToken)
            : await Layer.VdiCloneAsync(Dbg(context), Id(sr), source, context.CancellationToken);
        string reference = VdiRows.Ensure(database, sr, copy);
        database.Set("VDI", reference, "is_a_snapshot", isSnapshot);
        if (isSnapshot)
            database.Set("VDI", reference, "snapshot_of", vdi);
        return reference;
    }

    private async Task<RpcValue> ResizeVdiAsync(CallContext context, IReadOnlyList<RpcValue> a)
    {
        string vdi = a[0].AsString();
        long size = await Layer.VdiResizeAsync(
            Dbg(context), Id(database.GetRef("VDI", vdi, "SR")), new VdiId(database.GetString("VDI", vdi, "location")), a[1].AsLong(),
            context.CancellationToken);
        database.Set("VDI", vdi, "virtual_size", new RpcInt(size));
        return "";
    }

    private SrId Id(string sr) => new(database.GetString("SR", sr, "uuid"));

    private static string Dbg(CallContext context) => context.Task.Ref;
}
