// `.gc-<key>`: what the collector is about to do with an image, durable before the first change and removed after the last
// (docs/formats/sr-folder.md). Whoever takes the folder's lock and finds one, except a merge's, finishes it or undoes it.
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace Vhd.Collect;

public enum CollectStage
{
    /// <summary>An inner merge runs without the folder's lock. Nothing to undo: run again, it goes on.</summary>
    Merge,

    /// <summary>The parent becomes as large as the image, its tapdisks paused. Finished by doing it again.</summary>
    Grow,

    /// <summary>A disk's tapdisks are paused for a split or a last merge. Undone by resuming them.</summary>
    Hold,

    /// <summary>The parent holds all that the image holds. Finished by giving the parent its children, and deleting it.</summary>
    Relink,

    /// <summary>The parent holds all that the disk holds. Finished by giving the parent the disk's name.</summary>
    Swap,
}

/// <param name="Key">The image that goes.</param>
/// <param name="Parent">What takes its content.</param>
/// <param name="Children">For a relink, the image's children.</param>
/// <param name="Taps">Who may have been paused.</param>
public sealed record CollectJournal(
    CollectStage Stage, string Key, string Parent, IReadOnlyList<string> Children, IReadOnlyList<TapReference> Taps)
{
    public const string Prefix = ".gc-";

    internal byte[] ToBytes() => Encoding.UTF8.GetBytes(JsonSerializer.Serialize(this, CollectJson.Default.CollectJournal) + "\n");

    /// <summary>Null when it is none that this collector writes.</summary>
    internal static CollectJournal? Read(ReadOnlySpan<byte> bytes, string key)
    {
        try
        {
            CollectJournal? read = JsonSerializer.Deserialize(bytes, CollectJson.Default.CollectJournal);
            bool isOurs = read is not null && read.Key == key && ImageFolder.IsKey(read.Key) && ImageFolder.IsKey(read.Parent)
                && read.Key != read.Parent && read.Children.All(ImageFolder.IsKey);
            return isOurs ? read : null;
        }
        catch (JsonException)
        {
            return null;
        }
    }
}

[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, Converters = [typeof(CollectStageConverter)], RespectNullableAnnotations = true,
    RespectRequiredConstructorParameters = true)]
[JsonSerializable(typeof(CollectJournal))]
internal sealed partial class CollectJson : JsonSerializerContext;

internal sealed class CollectStageConverter() : JsonStringEnumConverter<CollectStage>(JsonNamingPolicy.CamelCase, allowIntegerValues: false);
