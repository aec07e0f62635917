// JSON-RPC as HTTP POST / on a unix socket, the way the field's daemons do it: one request in, one answer out.
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Http;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Platform;

namespace Xenops;

internal static class RpcSocket
{
    private const long RequestLimitBytes = 1 << 20;
    private static readonly TimeSpan CallsEndDeadline = TimeSpan.FromSeconds(5);

    /// <param name="handle">Always answers.</param>
    public static WebApplication Build(string socket, Func<string, CancellationToken, Task<string>> handle)
    {
        WebApplicationBuilder builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        builder.Services.Configure<HostOptions>(static o => o.ShutdownTimeout = CallsEndDeadline);
        builder.WebHost.UseKestrelCore().ConfigureKestrel(kestrel =>
        {
            kestrel.Limits.MaxRequestBodySize = RequestLimitBytes;
            kestrel.ListenUnixSocket(socket);
        });
        WebApplication web = builder.Build();
        web.Run(context => AnswerAsync(context, handle, web.Lifetime.ApplicationStopping));
        return web;
    }

    /// <summary>For nobody but the owner.</summary>
    public static void Protect(string socket) => File.SetUnixFileMode(socket, UnixFileMode.UserRead | UnixFileMode.UserWrite);

    private static async Task AnswerAsync(HttpContext context, Func<string, CancellationToken, Task<string>> handle, CancellationToken stopping)
    {
        if (context.Request.Method != HttpMethods.Post || context.Request.Path != "/")
        {
            context.Response.StatusCode = StatusCodes.Status404NotFound;
            return;
        }

        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(context.RequestAborted, stopping);
        using StreamReader reader = new(context.Request.Body);
        string request = await reader.ReadToEndAsync(limit.Token);
        string answer = "";
        try
        {
            answer = await handle(request, limit.Token);
        }
        catch (InvariantException e)
        {
            throw Invariant.Stop(e);
        }

        context.Response.ContentType = "application/json";
        await context.Response.WriteAsync(answer, CancellationToken.None);
    }
}
