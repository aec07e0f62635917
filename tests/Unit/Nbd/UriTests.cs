using Nbd;

namespace Unit.NbdTests;

public class UriTests
{
    [Theory]
    [InlineData("nbd:unix:/run/s.sock:exportname=disk", "/run/s.sock", null, 0, "disk", false)]
    [InlineData("nbd:unix:/run/s.sock:exportname=a/../b?c:exportname=d", "/run/s.sock", null, 0, "a/../b?c:exportname=d", false)]
    [InlineData("nbd:unix:/run/s.sock", "/run/s.sock", null, 0, "", false)]
    [InlineData("nbd+unix:///disk?socket=/run/s.sock", "/run/s.sock", null, 0, "disk", false)]
    [InlineData("nbds+unix:///a%20b?socket=/run/s.sock", "/run/s.sock", null, 0, "a b", true)]
    [InlineData("nbd://host/disk", null, "host", 10809, "disk", false)]
    [InlineData("nbd://host:1234/a/../b", null, "host", 1234, "a/../b", false)]
    [InlineData("nbds://[fe80::1]:99/", null, "fe80::1", 99, "", true)]
    [InlineData("nbds://[fe80::1]/x", null, "fe80::1", 10809, "x", true)]
    public void A_uri_of_the_field_is_understood(string text, string? socket, string? host, int port, string name, bool tls)
    {
        NbdUri uri = NbdUri.TryParse(text)!;
        Assert.Equal((socket, host, port, name, tls), (uri.SocketPath, uri.Host, uri.Port, uri.ExportName, uri.IsTls));
        Assert.Equal(uri, NbdUri.TryParse(uri.ToString()));
    }

    [Theory]
    [InlineData("nbd:unix:/run/s.sock:exportname=disk")]
    [InlineData("nbd+unix:///disk?socket=/run/s.sock")]
    [InlineData("nbd://host:1234/disk")]
    [InlineData("nbds://[fe80::1]/x")]
    public void A_uri_is_written_back_as_it_was(string text) => Assert.Equal(text, NbdUri.TryParse(text)!.ToString());

    [Theory]
    [InlineData("")]
    [InlineData("/run/s.sock")]
    [InlineData("nbd:unix:")]
    [InlineData("nbd+unix:///disk")]
    [InlineData("nbd+unix:///disk?socket=")]
    [InlineData("nbd:///disk")]
    [InlineData("nbd://host:0/disk")]
    [InlineData("nbd://host:65536/disk")]
    [InlineData("nbd://host:port/disk")]
    [InlineData("nbd://[fe80::1]x/disk")]
    [InlineData("http://host/disk")]
    public void Anything_else_is_refused(string text) => Assert.Null(NbdUri.TryParse(text));
}
