namespace Migration;

public enum MigrationSide
{
    Source,
    Destination,
}

/// <summary>
/// Why a migration ended without moving the VM: what failed, on which side, in which phase. <see cref="Code"/> and its parameters are what an
/// API client is told; the message is for a person.
/// </summary>
public sealed class MigrationException(
    string code, IReadOnlyList<string> parameters, MigrationSide side, string message, Exception? innerException = null, bool isTransient = false)
    : Exception(message, innerException)
{
    /// <summary>The code of <see cref="IDestinationResources.RunAsync"/> for a loaded guest that is gone.</summary>
    public const string DomainVanished = "DOMAIN_VANISHED";

    /// <summary>The code of a destination that knows nothing of this migration, although it was prepared: its memory is lost, its word means nothing.</summary>
    public const string Amnesia = "AMNESIA";

    public string Code { get; } = code;

    public IReadOnlyList<string> Parameters { get; } = parameters;

    public MigrationSide Side { get; } = side;

    /// <summary>A link, a process or a host was lost: the same thing may work later.</summary>
    public bool IsTransient { get; } = isTransient;

    public MigrationFailure ToFailure(string phase) => new(Code, Parameters, Side, phase, Message, IsTransient);
}

/// <summary>The same as a value, for records and replies.</summary>
public sealed record MigrationFailure(
    string Code, IReadOnlyList<string> Parameters, MigrationSide Side, string Phase, string Message, bool IsTransient = false)
{
    public MigrationException ToException() => new(
        Code, Parameters, Side, $"{Message} (on the {Side.ToString().ToLowerInvariant()}, in {Phase})", isTransient: IsTransient);
}

/// <summary>A record could not be made durable (the disk is full): nothing may go on until it is.</summary>
public sealed class JournalException(Exception innerException)
    : IOException($"the journal cannot be written: {innerException.Message}", innerException);
