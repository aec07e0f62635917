// vhdfile: a SMAPIv3 volume plugin (type vhdfile) and its datapath plugin (scheme tapdisk) in one C# executable. Which script it is comes from the name it
// was called by; one line of JSON on stdin, the bare result on stdout, an error with exit code 1 (research/storage.md 5.1, 5.2).
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using VhdFile;
using VhdFolder;

string script = ScriptName();
try
{
    if (args is not ["--json"])
        throw new ScriptException("SR_BACKEND_FAILURE", "usage", $"echo '{{\"dbg\":\"me\"}}' | {script} --json");
    JsonObject parameters = JsonNode.Parse(Console.In.ReadLine() ?? "") as JsonObject ?? throw new JsonException("a dict is expected");
    JsonNode? answer = await Scripts.RunAsync(script, new Parameters(parameters), CancellationToken.None);
    Console.Out.WriteLine(answer?.ToJsonString() ?? "null");
    return 0;
}
catch (ScriptException e)
{
    return Refuse(e.Code, e.Parameters);
}
catch (DriverException e)
{
    return Refuse($"SR_BACKEND_FAILURE_{e.Number}", [e.Message]);
}
catch (JsonException e)
{
    return Refuse("SR_BACKEND_FAILURE", ["bad request", e.Message]);
}
catch (Exception e) when (e is IOException or UnauthorizedAccessException)
{
    return Refuse(e is IOException io ? $"SR_BACKEND_FAILURE_{DriverException.Of(io, 202).Number}" : "SR_BACKEND_FAILURE_202", [e.Message]);
}

static int Refuse(string code, IReadOnlyList<string> parameters)
{
    JsonArray texts = new(parameters.Select(static p => (JsonNode)JsonValue.Create(p)).ToArray());
    JsonObject backtrace = new() { ["error"] = code, ["files"] = new JsonArray(), ["lines"] = new JsonArray() };
    Console.Out.WriteLine(new JsonObject { ["code"] = code, ["params"] = texts, ["backtrace"] = backtrace }.ToJsonString());
    return 1;
}

// .NET resolves its own name through symlinks; the kernel keeps the one that was called.
static string ScriptName()
{
    byte[] line = File.ReadAllBytes("/proc/self/cmdline");
    return Path.GetFileName(Encoding.UTF8.GetString(line, 0, Array.IndexOf(line, (byte)0)));
}
