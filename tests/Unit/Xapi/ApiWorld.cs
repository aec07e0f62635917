using Microsoft.Extensions.Logging.Abstractions;
using Platform;
using StorageAccess.Wire;
using Support;
using Xapi;
using Xapi.Database;
using Xapi.Rpc;
using Xapi.Sessions;
using Xapi.Tasks;

namespace Unit.XapiTests;

/// <summary>
/// Everything behind the HTTP server: a real database file, time that stands still, references that are the same in every run.
/// </summary>
internal sealed class ApiWorld : IAsyncDisposable
{
    public const string Password = "correct horse";
    public static readonly DataModel Model = DataModel.Load();
    public static readonly CallOrigin Tcp = new(false, "", "");
    public static readonly CallOrigin Local = new(true, "SM", "");

    private readonly TemporaryDirectory folder = new();

    public ApiWorld()
    {
        Time.Advance(TimeSpan.FromDays(20000));
        Database = Open();
        Host = Database.Create("host", ("name_label", "host"));
        Sessions = new SessionTable(Database, Time, new Secret(Password), Host, TimeSpan.FromSeconds(2));
        Tasks = new TaskTable(Database, Time, Host);
        Messages = new MessageTable(Model);
        GenericMessages.AddTo(Messages, Model);
        RowMessages.AddTo(Messages, Model);
        SessionMessages.AddTo(Messages, Sessions);
        TaskMessages.AddTo(Messages, Tasks);
        Dispatcher = new Dispatcher(Messages, Database, Sessions, Tasks, NullLogger<Dispatcher>.Instance);
        Root = Sessions.CreateForPool("test").Ref;
        User = Call("session.login_with_password", Local, "root", "").AsString();
    }

    public ManualTime Time { get; } = new();

    public PoolDatabase Database { get; private set; }

    public string Host { get; }

    public SessionTable Sessions { get; }

    public TaskTable Tasks { get; }

    public MessageTable Messages { get; }

    public Dispatcher Dispatcher { get; }

    /// <summary>A session of the pool's own.</summary>
    public string Root { get; }

    /// <summary>A session of somebody who logged in.</summary>
    public string User { get; }

    public string DatabasePath => folder.File("xapi.db");

    public PoolDatabase Open()
    {
        Random random = new(1);
        byte[] bytes = new byte[16];
        return PoolDatabase.Open(DatabasePath, Model, () =>
        {
            random.NextBytes(bytes);
            return new Guid(bytes);
        });
    }

    /// <summary>As the daemon's restart does it.</summary>
    public void Reopen()
    {
        Database.Dispose();
        Database = Open();
    }

    public Task<RpcValue> CallAsync(string name, CallOrigin origin, params RpcValue[] parameters) =>
        Dispatcher.CallAsync(name, parameters, origin, CancellationToken.None);

    public RpcValue Call(string name, CallOrigin origin, params RpcValue[] parameters)
    {
        Task<RpcValue> call = CallAsync(name, origin, parameters);
        Assert.True(call.Wait(TimeSpan.FromSeconds(10)), $"{name} does not answer");
        return call.Result;
    }

    /// <summary>With the user's session.</summary>
    public RpcValue Call(string name, params RpcValue[] parameters) => Unwrap(() => Call(name, Tcp, [User, .. parameters]));

    /// <summary>The error of a call that must fail: code and parameters, one text.</summary>
    public string Refusal(string name, params RpcValue[] parameters) => RefusalAs(User, name, parameters);

    public string RefusalAs(string session, string name, params RpcValue[] parameters)
    {
        XapiException e = Assert.Throws<XapiException>(() => Unwrap(() => Call(name, Tcp, [session, .. parameters])));
        return string.Join(' ', e.Description);
    }

    public static T Unwrap<T>(Func<T> call)
    {
        try
        {
            return call();
        }
        catch (AggregateException e) when (e.InnerException is { } inner)
        {
            System.Runtime.ExceptionServices.ExceptionDispatchInfo.Throw(inner);
            throw;
        }
    }

    /// <summary>Waits for another thread's effect; the deadline turns a hang into a failure.</summary>
    public static async Task UntilAsync(Func<bool> condition, string what)
    {
        for (int i = 0; i < 2000; i++)
        {
            if (condition())
                return;
            await Task.Delay(5);
        }

        Assert.Fail($"not within 10 s: {what}");
    }

    public async ValueTask DisposeAsync()
    {
        await Tasks.DisposeAsync();
        Sessions.Dispose();
        Database.Dispose();
        folder.Dispose();
    }
}
