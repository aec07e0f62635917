namespace Vhd.Transfer;

/// <summary>Makes the empty file that a copy fills.</summary>
internal static class NewTargets
{
    public static CopyTarget Create(DiskSource source, PosixStore store, string path, CopyOptions options)
    {
        long size = source.LengthBytes;
        if (options.Format != DiskFormat.Raw)
            VhdImage.CheckSize(path, size);
        return options.Format switch
        {
            DiskFormat.Vhd => Dynamic(source, store, path, options),
            DiskFormat.FixedVhd => Flat(store, path, size, VhdFooter.New(VhdType.Fixed, size, Guid.NewGuid(), Now).ToBytes(), options),
            _ => Flat(store, path, size, [], options),
        };
    }

    private static DateTimeOffset Now => TimeProvider.System.GetUtcNow();

    private static VhdTarget Dynamic(DiskSource source, PosixStore store, string path, CopyOptions options)
    {
        using ParentFacts? parent = options.IsLayerOnly
            ? ParentFacts.Read(store, source.Paths[1], source.Layers[0].Metadata!.Header!.ParentUuid == Guid.Empty)
            : null;
        long size = source.LengthBytes;
        VhdType type = parent is null ? VhdType.Dynamic : VhdType.Differencing;
        int blockBytes = VhdHeader.DefaultBlockBytes;
        using (IVhdFile file = store.Create(path, 0))
        {
            uint entries = (uint)((size + blockBytes - 1) / blockBytes);
            VhdImage.WriteEmpty(file, VhdFooter.New(type, size, Guid.NewGuid(), Now), entries, parent);
        }

        VhdLayer layer = VhdLayer.OpenImage(store, path, isWritable: true, VhdLayer.StripeCount);
        try
        {
            return new VhdTarget(layer, isExisting: false, options.IsLayerOnly, options.IsDirect);
        }
        catch
        {
            layer.Dispose();
            throw;
        }
    }

    private static RawTarget Flat(PosixStore store, string path, long sizeBytes, byte[] footer, CopyOptions options)
    {
        IVhdFile file = store.Create(path, options.Format == DiskFormat.FixedVhd ? sizeBytes + footer.Length : 0);
        try
        {
            file.SetLength(sizeBytes + footer.Length);
            file.Write(sizeBytes, footer);
            return new RawTarget(file, path, sizeBytes, isExisting: false, options.IsDirect);
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }
}

/// <summary>Opens a file that is there as the target of a copy in place; nothing is changed before all is checked.</summary>
internal static class ExistingTargets
{
    public static CopyTarget Open(DiskSource source, string path, CopyOptions options)
    {
        VhdLayer layer = options.Format == DiskFormat.Raw
            ? VhdLayer.OpenRaw(PosixStore.Instance, path, isWritable: true)
            : VhdLayer.OpenImage(PosixStore.Instance, path, isWritable: true, VhdLayer.StripeCount);
        try
        {
            Check(source, layer, path, options);
            layer.RefuseEncrypted();
            if (layer.IsFlat)
                return new RawTarget(layer.File, path, layer.SizeBytes, isExisting: true, options.IsDirect);
            VhdTarget target = new(layer, isExisting: true, options.IsLayerOnly, options.IsDirect);
            target.Disable(options.IsSynced);
            return target;
        }
        catch
        {
            layer.Dispose();
            throw;
        }
    }

    private static void Check(DiskSource source, VhdLayer layer, string path, CopyOptions options)
    {
        if (source.Paths.Contains(layer.File.CanonicalPath))
            throw Refused("it is one of the files that are to be copied");
        if (layer.SizeBytes != source.LengthBytes)
            throw Refused($"its disk has {layer.SizeBytes} bytes, the source's {source.LengthBytes}");
        bool isChild = layer.Metadata?.Footer.Type == VhdType.Differencing;
        if (isChild && !options.IsLayerOnly)
            throw Refused("it is a differencing image: what it does not hold shows its parent");
        if (options.IsLayerOnly && !isChild)
            throw Refused("a layer can only be copied into a differencing image");
        if (isChild && layer.Metadata!.Header!.ParentUuid != source.Layers[0].Metadata!.Header!.ParentUuid)
            throw Refused("it has another parent than the source");

        VhdException Refused(string why) => new(VhdError.BadRequest, path, $"cannot be written in place: {why}; nothing was changed");
    }
}
