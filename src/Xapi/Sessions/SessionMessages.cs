using Platform;
using Xapi.Rpc;

namespace Xapi.Sessions;

/// <summary>
/// session.login_with_password and logout (research: xapi.md 2). Logins have two to four parameters; the version is not looked at.
/// </summary>
public static class SessionMessages
{
    public static void AddTo(MessageTable messages, SessionTable sessions)
    {
        messages.Add("session.login_with_password", async (context, a) =>
        {
            Session session = await sessions.LoginAsync(
                a[0].AsString(), new Secret(a[1].AsString()), a[3].AsString(), context.Origin, context.CancellationToken);
            return session.Ref;
        });
        messages.Add("session.logout", (context, _) =>
        {
            sessions.Logout(context.Session.Ref);
            return "";
        });
    }
}
