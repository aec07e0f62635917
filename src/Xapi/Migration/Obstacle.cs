using Migration;

namespace Xapi.Migration;

public enum ObstacleSeverity
{
    /// <summary>VM.migrate would be refused with this code.</summary>
    Error,

    /// <summary>VM.migrate would begin; a person should know.</summary>
    Warning,
}

/// <summary>One thing that is in a migration's way, or will be.</summary>
/// <param name="Code">The field's error code where it has one.</param>
/// <param name="Side">Where it has to be put right.</param>
/// <param name="Message">For a person: what, and how much.</param>
public sealed record Obstacle(string Code, IReadOnlyList<string> Parameters, MigrationSide Side, string Message, ObstacleSeverity Severity)
{
    private static readonly TimeSpan CertificateNotice = TimeSpan.FromDays(7);

    public static Obstacle Of(MigrationException e) => new(e.Code, e.Parameters, e.Side, e.Message, ObstacleSeverity.Error);

    /// <summary>The same as VM.migrate says it.</summary>
    public MigrationException ToException() => new(Code, Parameters, Side, Message);

    /// <summary>Peers know each other by fingerprint, so a certificate that expired still connects; clients that check it do not. Null when it lasts.</summary>
    public static Obstacle? OfCertificate(DateTimeOffset expiresAt, DateTimeOffset now, MigrationSide side)
    {
        string whose = side == MigrationSide.Source ? "this pool's certificate" : "the destination's certificate";
        return expiresAt <= now
                ? new Obstacle("SERVER_CERTIFICATE_EXPIRED", [$"{expiresAt:u}"], side, $"{whose} expired at {expiresAt:u}", ObstacleSeverity.Error)
            : expiresAt - now <= CertificateNotice
                ? new Obstacle("SERVER_CERTIFICATE_EXPIRES", [$"{expiresAt:u}"], side, $"{whose} expires at {expiresAt:u}", ObstacleSeverity.Warning)
            : null;
    }
}
