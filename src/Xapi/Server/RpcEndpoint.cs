// XML-RPC over HTTP exactly as the field's clients expect it (research: xapi.md 1.1): HTTP 200 and a Status member for every answer of the
// API, HTTP 500 and a short page only for a body that is no XML-RPC call.
using System.Buffers;
using System.Text;
using Microsoft.AspNetCore.Http;
using StorageAccess.Wire;
using Xapi.Rpc;

namespace Xapi.Server;

public sealed class RpcEndpoint(Dispatcher dispatcher, MessageTable messages)
{
    public const int BodyLimitBytes = 16 * 1024 * 1024;

    /// <summary>What all bodies beyond their first part may hold together; the rest is told to come again.</summary>
    private const long AllBodiesLimitBytes = 256 * 1024 * 1024;
    private const int FirstPartBytes = 64 * 1024;

    private static readonly UTF8Encoding StrictUtf8 = new(false, throwOnInvalidBytes: true);
    private long allBodiesBytes;

    /// <param name="stopping">The daemon stops.</param>
    public async Task AnswerAsync(HttpContext http, CancellationToken stopping)
    {
        byte[]? body = await ReadBodyAsync(http);
        if (body is null)
        {
            await WriteAsync(http, StatusCodes.Status503ServiceUnavailable, "text/plain", "too many large requests at once; come again\n");
            return;
        }

        // What only waits on a client's behalf (a long poll) gives up when the client is gone or the daemon stops.
        using CancellationTokenSource gone = CancellationTokenSource.CreateLinkedTokenSource(http.RequestAborted, stopping);
        try
        {
            string answer = await AnswerAsync(body, OriginOf(http), gone.Token);
            await WriteAsync(http, StatusCodes.Status200OK, "text/xml", answer);
        }
        catch (RpcFormatException e)
        {
            string page = $"<html><body><h1>HTTP 500 internal server error</h1>{System.Net.WebUtility.HtmlEncode(e.Message)}</body></html>";
            await WriteAsync(http, StatusCodes.Status500InternalServerError, "text/html", page);
        }
        catch (OperationCanceledException) when (gone.IsCancellationRequested)
        {
            http.Abort();
        }
        finally
        {
            Interlocked.Add(ref allBodiesBytes, -Shared(body.Length));
        }
    }

    private async Task<string> AnswerAsync(byte[] body, CallOrigin origin, CancellationToken gone)
    {
        try
        {
            XmlRpcCall call = XmlRpc.ReadCall(Decode(body));
            if (call.Method == "system.listMethods") // A bare array without a session: what probing clients expect.
                return XmlRpc.WriteResponse(RpcValue.Strings(messages.Names));
            RpcValue value = await dispatcher.CallAsync(call.Method, call.Parameters, origin, gone);
            return XmlRpc.WriteResponse(RpcValue.Struct(("Status", "Success"), ("Value", value)));
        }
        catch (XapiException e)
        {
            return XmlRpc.WriteResponse(RpcValue.Struct(("Status", "Failure"), ("ErrorDescription", RpcValue.Strings(e.Description))));
        }
    }

    private static string Decode(byte[] body)
    {
        try
        {
            return StrictUtf8.GetString(body);
        }
        catch (DecoderFallbackException)
        {
            throw new XapiException("INVALID_VALUE", "Invalid UTF-8 string in parameter", "");
        }
    }

    private static CallOrigin OriginOf(HttpContext http) => new(
        http.Features.Get<LocalPeer>() is not null,
        http.Request.Headers["originator"].ToString(),
        http.Request.Headers["subtask-of"].ToString());

    /// <summary>Null when the bodies of all requests together are too large. The limit of a single one is Kestrel's to enforce.</summary>
    private async Task<byte[]?> ReadBodyAsync(HttpContext http)
    {
        ArrayBufferWriter<byte> body = new();
        while (true)
        {
            Memory<byte> free = body.GetMemory(FirstPartBytes / 4);
            int count;
            try
            {
                count = await http.Request.Body.ReadAsync(free, http.RequestAborted);
            }
            catch
            {
                Interlocked.Add(ref allBodiesBytes, -Shared(body.WrittenCount));
                throw;
            }

            if (count == 0)
                return body.WrittenSpan.ToArray();
            long more = Shared(body.WrittenCount + count) - Shared(body.WrittenCount);
            if (Interlocked.Add(ref allBodiesBytes, more) > AllBodiesLimitBytes)
            {
                Interlocked.Add(ref allBodiesBytes, -more - Shared(body.WrittenCount));
                return null;
            }

            body.Advance(count);
        }
    }

    private static long Shared(long lengthBytes) => Math.Max(0, lengthBytes - FirstPartBytes);

    private static async Task WriteAsync(HttpContext http, int status, string contentType, string text)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(text);
        HttpResponse response = http.Response;
        response.StatusCode = status;
        response.ContentType = contentType;
        response.ContentLength = bytes.Length;
        response.Headers.CacheControl = "no-cache, no-store";
        response.Headers.AccessControlAllowOrigin = "*";
        response.Headers.AccessControlAllowHeaders = "X-Requested-With";
        await response.Body.WriteAsync(bytes, http.RequestAborted);
    }
}
