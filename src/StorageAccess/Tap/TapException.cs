namespace StorageAccess.Tap;

/// <summary>A tapdisk said no, or cannot be reached. <see cref="ErrnoNumber"/> is positive and what <c>tap-ctl</c> exits with.</summary>
public sealed class TapException(int errnoNumber, string message, Exception? innerException = null) : IOException(message, innerException)
{
    /// <summary>EPROTO: the peer broke the protocol.</summary>
    public const int ProtocolError = 71;

    public const int NameTooLong = 36;
    public const int NoSuchProcess = 3;
    public const int NoSuchDevice = 19;
    public const int TryAgain = 11;
    public const int Interrupted = 4;
    public const int Busy = 16;
    public const int Already = 114;
    public const int TimedOut = 110;
    public const int NotSupported = 95;

    public int ErrnoNumber { get; } = errnoNumber;
}
