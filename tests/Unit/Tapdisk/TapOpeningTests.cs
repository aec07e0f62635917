// What an open sends behind its record (research: storage.md 6.3): 256 bytes with the log's path, then a byte with the key's length and
// the key, all in the record's own write.
using System.Net.Sockets;
using System.Text;
using StorageAccess.Tap;
using Support;

namespace Unit.TapdiskTests;

public sealed class TapOpeningTests : IDisposable
{
    private const int ProcessId = 4711;
    private readonly TemporaryDirectory folder = new();

    public void Dispose() => folder.Dispose();

    [Fact]
    public async Task Log_and_key_follow_the_record_and_the_flags_say_so()
    {
        byte[] key = [.. Enumerable.Range(0, 64).Select(static i => (byte)(i + 1))];
        TapOpening opening = new("vhd:/a")
        {
            Flags = TapOpenFlags.ReadOnly | TapOpenFlags.Standby,
            Secondary = "aio:/b",
            ParentMinor = 12,
            RequestTimeoutSeconds = 40,
            LogPath = "/var/log/a.cbtlog",
            Key = key,
        };
        byte[] sent = await SentAsync(control => control.OpenAsync(ProcessId, 3, opening, CancellationToken.None));
        TapMessage record = TapMessage.Decode(sent.AsSpan(0, TapMessage.SizeBytes));
        Assert.Equal((3, "vhd:/a", "aio:/b", 12, 40), (
            record.Minor, record.Path, record.Secondary, record.ParentDeviceNumber, record.RequestTimeoutSeconds));
        Assert.Equal(
            TapOpenFlags.ReadOnly | TapOpenFlags.Standby | TapOpenFlags.Secondary | TapOpenFlags.ReuseParent | TapOpenFlags.AddLog
            | TapOpenFlags.Encrypted,
            record.Flags);
        byte[] log = [.. Encoding.ASCII.GetBytes(opening.LogPath), .. new byte[256 - opening.LogPath.Length]];
        Assert.Equal([.. log, (byte)key.Length, .. key], sent[TapMessage.SizeBytes..]);
    }

    [Fact]
    public async Task Nothing_follows_where_nothing_was_asked_and_a_log_follows_a_resume()
    {
        byte[] open = await SentAsync(control => control.OpenAsync(ProcessId, 3, new TapOpening("vhd:/a"), CancellationToken.None));
        Assert.Equal((TapMessage.SizeBytes, TapOpenFlags.None), (open.Length, TapMessage.Decode(open).Flags));
        byte[] resume = await SentAsync(control => control.ResumeAsync(ProcessId, 3, null, null, "/l", CancellationToken.None));
        Assert.Equal(TapMessage.SizeBytes + 256, resume.Length);
        Assert.Equal("/l", Encoding.ASCII.GetString(resume, TapMessage.SizeBytes, 256).TrimEnd('\0'));
        Assert.Equal(TapOpenFlags.AddLog, TapMessage.Decode(resume.AsSpan(0, TapMessage.SizeBytes)).Flags);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(31)]
    [InlineData(65)]
    public async Task A_key_of_another_length_is_not_sent(int length)
    {
        TapControl control = new(folder.Path);
        TapOpening opening = new("vhd:/a") { Key = new byte[length] };
        TapException refused = await Assert.ThrowsAsync<TapException>(() =>
            control.OpenAsync(ProcessId, 3, opening, CancellationToken.None));
        Assert.Equal(22, refused.ErrnoNumber);
    }

    /// <summary>What a call sends to a tapdisk that refuses it.</summary>
    private async Task<byte[]> SentAsync(Func<TapControl, Task> call)
    {
        TapControl control = new(folder.Path);
        string path = control.ControlSocketPath(ProcessId);
        File.Delete(path);
        using Socket listener = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        listener.Bind(new UnixDomainSocketEndPoint(path));
        listener.Listen(1);
        Task calling = Assert.ThrowsAsync<TapException>(() => call(control));
        using Socket client = await listener.AcceptAsync();
        byte[] received = new byte[4096];
        int length = await client.ReceiveAsync(received); // One write: a unix socket gives it whole.
        await client.SendAsync(new TapMessage(TapMessageType.Error, 3) { Error = 95 }.Bytes);
        await calling;
        return received[..length];
    }
}
