using Platform;
using Support;
using Xe.Api;
using Xe.Grammar;

namespace Unit.XeTests;

public class GrammarTests
{
    [Fact]
    public void Options_stand_anywhere_and_two_dashes_alone_mean_true()
    {
        CommandLine line = Parse("vm-migrate", "-s", "b", "vm=web 1=x", "--live", "-p", "4443", "--plan=false", "--minimal", "vdi:u=sr");

        Assert.Equal("vm-migrate", line.Verb);
        Assert.Equal([("vm", "web 1=x"), ("live", "true"), ("plan", "false"), ("vdi:u", "sr")], line.Keys.Select(static k => (k.Key, k.Value)));
        Assert.True(line.IsMinimal);
        Assert.Equal(("b", 4443), (line.Connection.Server, line.Connection.Port));
    }

    [Fact]
    public void The_line_wins_over_XE_EXTRA_ARGS_and_these_over_other_variables_and_these_over_the_file()
    {
        Dictionary<string, string> environment = new()
        {
            ["XE_SERVER"] = "variable",
            ["XE_PASSWORD_FILE"] = "/variable",
            ["XE_EXTRA_ARGS"] = "username=extra\\,name,port=1,passwordfile=/extra",
        };
        ConnectionOptions read = CommandLine.Parse(["vm-list", "-p", "2"], environment.GetValueOrDefault, static () => ["server=file", "# no", "fingerprint=ab"]).Connection;

        Assert.Equal(new ConnectionOptions { Server = "variable", User = "extra,name", Port = 2, PasswordFile = "/extra", Fingerprint = "ab" }, read);
        Assert.Equal(new Secret("typed"), CommandLine.Parse(["x", "-pw", "typed"], environment.GetValueOrDefault, static () => []).Connection.Password);
    }

    [Theory]
    [InlineData("vm-list -s")]
    [InlineData("vm-list -p port")]
    [InlineData("vm-list -p 65536")]
    [InlineData("vm-list -x")]
    [InlineData("vm-list =x")]
    [InlineData("x=y")]
    public void What_is_not_understood_is_a_bad_command_line(string line) =>
        Assert.Equal(ExitCodes.BadCommandLine, Assert.Throws<XeException>(() => Parse(line.Split(' '))).ExitCode);

    [Theory]
    [InlineData("0", 0)]
    [InlineData("512", 512)]
    [InlineData("3KiB", 3 << 10)]
    [InlineData("50mib", 50 << 20)]
    [InlineData("20GB", 20L << 30)]
    [InlineData("2TiB", 2L << 40)]
    public void Sizes_have_the_fields_units(string text, long bytes) => Assert.Equal(bytes, Arguments.ReadBytes("size", text));

    [Theory]
    [InlineData("")]
    [InlineData("-1")]
    [InlineData("1.5GiB")]
    [InlineData("1PiB")]
    [InlineData("9223372036854775808")]
    [InlineData("8388608TiB")]
    public void A_size_that_is_none_is_refused(string text) => Assert.Throws<XeException>(() => Arguments.ReadBytes("size", text));

    [Fact]
    public void A_mistyped_key_is_refused_with_the_one_that_was_meant()
    {
        Arguments arguments = new([KeyValuePair.Create("bandwith", "1")]);

        XeException e = Assert.Throws<XeException>(() => arguments.RefuseOthers("vm-migrate", ["vm", "bandwidth", "vdi:"]));

        Assert.Contains("bandwidth= was probably meant", e.Detail, StringComparison.Ordinal);
        new Arguments([KeyValuePair.Create("vdi:x", "1")]).RefuseOthers("vm-migrate", ["vdi:"]);
    }

    [Theory]
    [InlineData("pool-a", "https://pool-a/", "pool-a:443")]
    [InlineData("pool-a:4443", "https://pool-a:4443/", "pool-a:4443")]
    [InlineData("https://10.0.0.1:5", "https://10.0.0.1:5/", "10.0.0.1:5")]
    [InlineData("::1", "https://[::1]/", "::1:443")]
    [InlineData("http://127.0.0.1:80", "http://127.0.0.1/", "127.0.0.1:80")]
    [InlineData("http://localhost", "http://localhost/", "localhost:80")]
    public void An_address_is_https_unless_it_is_this_machine(string text, string url, string name)
    {
        PoolAddress address = PoolAddress.Parse(text);

        Assert.Equal((url, name), (address.Url.ToString(), address.Name));
    }

    [Theory]
    [InlineData("http://10.0.0.1")]
    [InlineData("ftp://a")]
    [InlineData("https://root:pw@a")]
    [InlineData("")]
    [InlineData("a b")]
    public void Another_address_is_refused(string text) => Assert.Equal(2, Assert.Throws<XeException>(() => PoolAddress.Parse(text)).ExitCode);

    [Fact]
    public void A_certificate_is_trusted_by_fingerprint_by_an_authority_or_by_having_been_kept_and_by_nothing_else()
    {
        using TemporaryDirectory folder = new();
        KnownPools known = new(folder.File("xe/known_pools"));
        string one = string.Join(':', Enumerable.Repeat("AB", 32)), other = string.Join(':', Enumerable.Repeat("CD", 32));

        Assert.Null(new PoolTrust(one.Replace(":", "", StringComparison.Ordinal).ToLowerInvariant(), false, known).WhyNot("a:443", one, false));
        Assert.Contains("another one", new PoolTrust(other, true, known).WhyNot("a:443", one, true), StringComparison.Ordinal);
        PoolTrust nothing = new(null, false, known);
        Assert.Null(nothing.WhyNot("a:443", one, isVouchedFor: true));
        Assert.Contains("--trust-on-first-use", nothing.WhyNot("a:443", one, false), StringComparison.Ordinal);
        Assert.False(File.Exists(known.Path), "a refusal keeps nothing");

        Assert.Null(new PoolTrust(null, true, known).WhyNot("a:443", one, false));
        Assert.Null(nothing.WhyNot("a:443", one, false));
        Assert.NotNull(nothing.WhyNot("b:443", one, false));
        Assert.Contains("not the same pool", new PoolTrust(null, true, known).WhyNot("a:443", other, true), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("AB")]
    [InlineData("sha256:zz")]
    public void A_fingerprint_is_sixty_four_digits(string text) => Assert.Throws<XeException>(() => PoolTrust.Checked(text));

    private static CommandLine Parse(params string[] words) => CommandLine.Parse(words, static _ => null, static () => []);
}
