// The field's statistics object, byte for byte in its spelling: consumers of it have been seen to search text (golden tap-ctl.json).
using System.Text.Encodings.Web;
using System.Text.Json;
using StorageAccess.Tap;

namespace Tapdisk;

internal static class StatsText
{
    private const int SectorBytes = 512;

    public static string Of(OpenDisk disk)
    {
        GateCounts counts = disk.Front.Counts;
        DiskImage image = disk.Image;
        List<string> images = [];
        for (int i = 0; i < image.Paths.Count; i++)
            images.Add(ImageOf(image.Paths[i], i == 0 ? counts : default, image.TypeNumber, image.TypeName));
        if (disk is { SecondaryName: { } secondary, Mirror: { } mirror })
            images.Insert(1, ImageOf(secondary, new GateCounts { SectorsWritten = mirror.Status.SentBytes / SectorBytes }, 15, "nbd"));
        bool mirrorFailed = disk.Mirror is { Status.Phase: MirrorPhase.Failed };
        return $"{{ \"name\": {Quoted(image.Arguments)}, \"secs\": [ {counts.SectorsRead}, {counts.SectorsWritten} ], "
            + $"\"images\": [ {string.Join(", ", images)} ], \"FIXME_enospc_redirect_count\": 0, "
            + $"\"nbd_mirror_failed\": {(mirrorFailed ? 1 : 0)}, \"reqs_outstanding\": {disk.Front.InFlight}, "
            + "\"read_caching\": \"false\" }";
    }

    private static string ImageOf(string path, GateCounts counts, int type, string name) =>
        $"{{ \"name\": {Quoted(path)}, \"hits\": [ {counts.SectorsRead}, {counts.SectorsWritten} ], "
        + $"\"fail\": [ {counts.FailedReads}, {counts.FailedWrites} ], "
        + $"\"driver\": {{ \"type\": {type}, \"name\": \"{name}\", \"status\": null }} }}";

    private static string Quoted(string text) => $"\"{JsonEncodedText.Encode(text, JavaScriptEncoder.UnsafeRelaxedJsonEscaping)}\"";
}
