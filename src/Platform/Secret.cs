using System.Security.Cryptography;
using System.Text;

namespace Platform;

/// <summary>A password, token or key. Prints as three stars; compared in constant time.</summary>
public sealed class Secret(string value) : IEquatable<Secret>
{
    /// <summary>The text itself; only where it goes onto a wire or is compared by someone else.</summary>
    public string Reveal() => value;

    public static Secret Create() => new(Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(24)));

    public bool Equals(Secret? other) =>
        other is not null && CryptographicOperations.FixedTimeEquals(Encoding.UTF8.GetBytes(value), Encoding.UTF8.GetBytes(other.Reveal()));

    public override bool Equals(object? obj) => Equals(obj as Secret);

    public override int GetHashCode() => value.GetHashCode(StringComparison.Ordinal);

    public override string ToString() => "***";
}
