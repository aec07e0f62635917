using Microsoft.Win32.SafeHandles;
using Platform;

namespace VhdUtil;

/// <summary>Standard input whose waits end with the token.</summary>
internal sealed class WaitingInput(CancellationToken cancellationToken) : Stream
{
    private readonly SafeFileHandle file = new(0, ownsHandle: false);
    private readonly Stream input = Console.OpenStandardInput();

    public override bool CanRead => true;

    public override bool CanWrite => false;

    public override bool CanSeek => false;

    public override long Length => throw new NotSupportedException();

    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    public override int Read(Span<byte> buffer)
    {
        Posix.WaitReadable(file, cancellationToken);
        return input.Read(buffer);
    }

    public override int Read(byte[] buffer, int offset, int count) => Read(buffer.AsSpan(offset, count));

    public override void Flush()
    {
    }

    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    public override void SetLength(long value) => throw new NotSupportedException();

    public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();
}
