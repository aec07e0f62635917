namespace Xapi.Sessions;

/// <summary>Somebody who is logged in. Its reference is a secret: whoever knows it acts as this session. Never logged.</summary>
public sealed class Session : IDisposable
{
    private readonly CancellationTokenSource ended = new();

    public Session() => Ended = ended.Token;

    public required string Ref { get; init; }

    public required string UserName { get; init; }

    public required string Originator { get; init; }

    /// <summary>The pool's own: may call what is internal.</summary>
    public required bool IsPool { get; init; }

    /// <summary>
    /// The SR that an SM driver works for: it may write this SR's privileged fields. Shown as other_config:_sm_session, but decided here,
    /// because a client can write its other_config.
    /// </summary>
    public required string? StorageSr { get; init; }

    /// <summary>Cancelled by logout and expiry: what waits on behalf of this session gives up.</summary>
    public CancellationToken Ended { get; }

    internal DateTimeOffset LastActive { get; set; }

    internal DateTimeOffset LastActiveWritten { get; set; }

    internal void End() => ended.Cancel();

    public void Dispose() => ended.Dispose();
}
