// Who is logged in (research: xapi.md 2). A session is a row of class session, in memory only, and ends by logout, after 24 hours without a
// call, or as the longest idle one when its kind has reached its limit.
using Platform;
using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Rpc;

namespace Xapi.Sessions;

public sealed class SessionTable : IDisposable
{
    private const string RootUser = "root";
    private const int AnonymousLimit = 400;
    private const int PoolLimit = 400;
    private const int OriginatorLimit = 500;
    private const int UserLimit = 500;

    /// <summary>How many refusals are delayed at once; further ones wait their turn. Good passwords never wait.</summary>
    private const int DelayedRefusals = 16;

    private static readonly TimeSpan Inactivity = TimeSpan.FromHours(24);

    /// <summary>The row's last_active is not written more often: each write is an entry in the database's history.</summary>
    private static readonly TimeSpan LastActiveStep = TimeSpan.FromSeconds(600);

    private readonly Lock gate = new();
    private readonly Dictionary<string, Session> sessions = [];
    private readonly SemaphoreSlim refusals = new(DelayedRefusals);
    private readonly PoolDatabase database;
    private readonly TimeProvider time;
    private readonly Secret rootPassword;
    private readonly string hostRef;
    private readonly TimeSpan refusalDelay;
    private readonly ITimer sweep;

    /// <param name="refusalDelay">How long a wrong password waits for its answer.</param>
    public SessionTable(PoolDatabase database, TimeProvider time, Secret rootPassword, string hostRef, TimeSpan refusalDelay)
    {
        this.database = database;
        this.time = time;
        this.rootPassword = rootPassword;
        this.hostRef = hostRef;
        this.refusalDelay = refusalDelay;
        sweep = time.CreateTimer(_ => EndExpired(), null, TimeSpan.FromMinutes(10), TimeSpan.FromMinutes(10));
    }

    /// <summary>Logs in. On the unix socket everyone is root and the password is not looked at.</summary>
    /// <exception cref="XapiException">SESSION_AUTHENTICATION_FAILED [user, text], after a delay.</exception>
    public async Task<Session> LoginAsync(
        string user, Secret password, string originator, CallOrigin origin, CancellationToken cancellationToken)
    {
        bool isRight = rootPassword.Equals(password) & user == RootUser; // Not &&: a wrong user takes as long as a wrong password.
        if (origin.IsLocal || isRight)
            return Create(RootUser, originator.Length == 0 ? origin.Originator : originator, isPool: false, storageSr: null);
        await refusals.WaitAsync(cancellationToken);
        try
        {
            await Task.Delay(refusalDelay, time, cancellationToken);
        }
        finally
        {
            refusals.Release();
        }

        throw new XapiException("SESSION_AUTHENTICATION_FAILED", user, "the user name or the password is wrong");
    }

    /// <summary>
    /// A session for an SM driver that works on one SR; the caller logs it out. There are as many as SRs: they count for no limit, and no
    /// crowd of others ends one.
    /// </summary>
    public Session CreateForStorage(string srRef) => Create("__sm__backend", "SM", isPool: false, srRef);

    /// <summary>Whether the session can be used; if so, it counts as used now.</summary>
    public bool IsLive(string reference)
    {
        try
        {
            Authenticate(reference);
            return true;
        }
        catch (XapiException)
        {
            return false;
        }
    }

    /// <summary>A session for the pool's own daemons; the caller logs it out.</summary>
    public Session CreateForPool(string originator) => Create(RootUser, originator, isPool: true, storageSr: null);

    /// <summary>The live session of that reference, marked as active now.</summary>
    /// <exception cref="XapiException">SESSION_INVALID [ref]: clients log in again on exactly this code.</exception>
    public Session Authenticate(string reference)
    {
        lock (gate)
        {
            DateTimeOffset now = time.GetUtcNow();
            if (!sessions.TryGetValue(reference, out Session? session) || now - session.LastActive > Inactivity)
                throw new XapiException("SESSION_INVALID", reference);
            session.LastActive = now;
            if (now - session.LastActiveWritten >= LastActiveStep)
            {
                session.LastActiveWritten = now;
                database.Set("session", reference, "last_active", DateTimeType.Of(now));
            }

            return session;
        }
    }

    /// <summary>Ends a session; nothing happens when it has ended already. Its tasks go on.</summary>
    public void Logout(string reference)
    {
        Session? session;
        lock (gate)
        {
            if (!sessions.Remove(reference, out session))
                return;
            database.Destroy("session", reference);
        }

        session.End();
        session.Dispose();
    }

    public void EndExpired()
    {
        List<string> expired;
        lock (gate)
        {
            DateTimeOffset now = time.GetUtcNow();
            expired = sessions.Values.Where(s => now - s.LastActive > Inactivity).Select(static s => s.Ref).ToList();
        }

        expired.ForEach(Logout);
    }

    public void Dispose()
    {
        sweep.Dispose();
        List<string> all;
        lock (gate)
            all = [.. sessions.Keys];
        all.ForEach(Logout);
        refusals.Dispose();
    }

    private Session Create(string user, string originator, bool isPool, string? storageSr)
    {
        List<string> surplus = [];
        Session session;
        lock (gate)
        {
            MakeRoom(surplus, PoolLimit, s => isPool && s.IsPool);
            int originatorLimit = originator.Length == 0 ? AnonymousLimit : OriginatorLimit;
            bool isUser = !isPool && storageSr is null;
            MakeRoom(surplus, originatorLimit, s => isUser && IsUser(s) && s.Originator == originator);
            MakeRoom(surplus, UserLimit, s => isUser && IsUser(s) && s.UserName == user);
            DateTimeOffset now = time.GetUtcNow();
            string reference = database.Create("session", Fields(user, originator, isPool, storageSr, DateTimeType.Of(now)));
            session = new Session
            {
                Ref = reference,
                UserName = user,
                Originator = originator,
                IsPool = isPool,
                StorageSr = storageSr,
                LastActive = now,
                LastActiveWritten = now,
            };
            sessions.Add(reference, session);
        }

        surplus.ForEach(Logout);
        return session;
    }

    private static bool IsUser(Session session) => session is { IsPool: false, StorageSr: null };

    private IEnumerable<(string, RpcValue)> Fields(string user, string originator, bool isPool, string? storageSr, RpcValue now) =>
    [
        ("this_host", hostRef),
        ("auth_user_name", user),
        ("originator", originator),
        ("pool", isPool),
        ("is_local_superuser", true),
        ("last_active", now),
        ("validation_time", now),
        ("other_config", RpcValue.Map(storageSr is null ? [] : [KeyValuePair.Create("_sm_session", storageSr)])),
    ];

    /// <summary>Names the longest idle session of a kind that is full; one with a pending task stays.</summary>
    private void MakeRoom(List<string> surplus, int limit, Func<Session, bool> isSameKind)
    {
        List<Session> same = sessions.Values.Where(s => isSameKind(s) && !surplus.Contains(s.Ref)).ToList();
        if (same.Count < limit)
            return;
        Session? idle = same.OrderBy(static s => s.LastActive).FirstOrDefault(s => !HasPendingTask(s));
        surplus.Add((idle ?? same[0]).Ref);
    }

    private bool HasPendingTask(Session session) =>
        database.GetSet("session", session.Ref, "tasks").Any(t => database.GetString("task", t, "status") == "pending");
}
