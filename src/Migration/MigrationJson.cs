using System.Text.Json;
using System.Text.Json.Serialization;

namespace Migration;

/// <summary>The one spelling of plans, records and receipts in journals and between pools: snake_case, enums by name, unknown members ignored.</summary>
public static class MigrationJson
{
    public static readonly JsonSerializerOptions Options = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower,
        Converters = { new JsonStringEnumConverter(JsonNamingPolicy.SnakeCaseLower) },
        MaxDepth = 64,
    };

    public static string Write<T>(T value) => JsonSerializer.Serialize(value, Options);

    /// <exception cref="JsonException">Not that.</exception>
    public static T Read<T>(string text)
    {
        try
        {
            return JsonSerializer.Deserialize<T>(text, Options) ?? throw new JsonException($"null is not a {typeof(T).Name}");
        }
        catch (NotSupportedException e)
        {
            throw new JsonException($"the record does not say which {typeof(T).Name} it is", e);
        }
    }
}
