using System.Text;
using System.Text.Json.Nodes;
using StorageAccess.Wire;
using Client = Xe.Api.XmlRpc;

namespace Unit.XeTests;

public class CodecTests
{
    [Fact]
    public void The_server_reads_what_the_client_writes()
    {
        string text = Client.WriteCall("VM.x", ["a<b&c ", true, 0.5, null, new JsonArray("1", ""), new JsonObject { ["k"] = new JsonObject { ["é"] = "v" } }]);

        XmlRpcCall call = XmlRpc.ReadCall(text);

        Assert.Equal("VM.x", call.Method);
        Assert.Equal("a<b&c ", call.Parameters[0].AsString());
        Assert.True(call.Parameters[1].AsBool());
        Assert.Equal("0.5", call.Parameters[2].AsString());
        Assert.Equal("", call.Parameters[3].AsString());
        Assert.Equal(["1", ""], call.Parameters[4].AsArray().Select(static v => v.AsString()));
        Assert.Equal("v", call.Parameters[5].AsStruct().Get("k").AsStruct().Get("é").AsString());
    }

    [Fact]
    public void The_client_reads_what_the_server_writes()
    {
        string text = XmlRpc.WriteResponse(RpcValue.Struct(
            ("text", " a\n<b "), ("int", new RpcInt(1L << 60)), ("yes", true), ("half", new RpcDouble(0.5)), ("set", RpcValue.Strings(["x", ""])), ("map", RpcValue.Struct())));

        Assert.Equal(
            """{"text":" a\n\u003Cb ","int":"1152921504606846976","yes":true,"half":0.5,"set":["x",""],"map":{}}""",
            Read(text)!.ToJsonString());
    }

    [Theory]
    [InlineData("")]
    [InlineData("<html/>")]
    [InlineData("<methodResponse/>")]
    [InlineData("<methodResponse><params><param><value><string>cut")]
    [InlineData("<methodResponse><params><param><value><double>x</double></value></param></params></methodResponse>")]
    [InlineData("<methodResponse><params><param><value><struct><member><value/></member></struct></value></param></params></methodResponse>")]
    [InlineData("<methodResponse><fault><value><string>no</string></value></fault></methodResponse>")]
    [InlineData("<!DOCTYPE a [<!ENTITY b SYSTEM \"file:///etc/passwd\">]><methodResponse><params><param><value>&b;</value></param></params></methodResponse>")]
    public void What_is_no_answer_is_refused(string text) => Assert.Throws<FormatException>(() => Read(text));

    [Fact]
    public void An_answer_that_is_deep_for_its_own_sake_is_refused()
    {
        const int levels = 200_000;
        string text = "<methodResponse><params><param>" + string.Concat(Enumerable.Repeat("<value><array><data>", levels))
            + string.Concat(Enumerable.Repeat("</data></array></value>", levels)) + "</param></params></methodResponse>";

        Assert.Contains("deeper", Assert.Throws<FormatException>(() => Read(text)).Message, StringComparison.Ordinal);
    }

    private static JsonNode? Read(string text)
    {
        using MemoryStream bytes = new(Encoding.UTF8.GetBytes(text));
        return Client.ReadResponse(bytes);
    }
}
