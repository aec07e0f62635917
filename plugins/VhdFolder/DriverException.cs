using Platform;

namespace VhdFolder;

/// <summary>A driver's no, under the field's number (research/storage.md 3.5). Nothing was changed.</summary>
public sealed class DriverException(int number, string message) : Exception(message)
{
    public const int InUse = 24;
    public const int NotEmpty = 39;
    public const int Exists = 42;
    public const int NoSpace = 44;
    public const int Unavailable = 46;
    public const int SrUnavailable = 47;
    public const int Damaged = 65;
    public const int VdiSize = 79;
    public const int LocationMissing = 94;
    public const int ChainTooLong = 109;
    public const int ResizeFailed = 110;
    public const int BadRequest = 143;
    public const int VdiMissing = 144;

    public int Number { get; } = number;

    /// <summary>What an I/O error is to a driver: a full disk is 44 whatever was done, anything else is the command's own number.</summary>
    public static DriverException Of(IOException e, int commandNumber) =>
        BlockIoException.ErrnoOf(e) == Errno.ENOSPC ? new DriverException(NoSpace, $"no space left: {e.Message}")
            : new DriverException(commandNumber, e.Message);
}
