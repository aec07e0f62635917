using Xapi;
using Xapi.Sessions;

namespace Unit.XapiTests;

public sealed class SessionTests : IAsyncDisposable
{
    private readonly ApiWorld world = new();

    public ValueTask DisposeAsync() => world.DisposeAsync();

    [Fact]
    public void A_login_has_two_to_four_parameters()
    {
        string[] all = ["root", ApiWorld.Password, "2.20", "tests"];
        for (int count = 2; count <= 4; count++)
        {
            string session = world.Call("session.login_with_password", ApiWorld.Tcp, [.. all.Take(count)]).AsString();
            Assert.Equal(count == 4 ? "tests" : "", world.Database.GetString("session", session, "originator"));
            Assert.Equal(world.Host, world.Database.GetRef("session", session, "this_host"));
        }
    }

    [Theory]
    [InlineData("root", "")]
    [InlineData("root", "correct horsf")]
    [InlineData("root", "correct horse\n")]
    [InlineData("Root", ApiWorld.Password)]
    [InlineData("", "")]
    public async Task A_wrong_password_is_refused_after_a_delay(string user, string password)
    {
        Task login = world.CallAsync("session.login_with_password", ApiWorld.Tcp, user, password);
        world.Time.Advance(TimeSpan.FromSeconds(1.9));
        Assert.False(login.IsCompleted);
        world.Time.Advance(TimeSpan.FromSeconds(0.2));
        XapiException e = await Assert.ThrowsAsync<XapiException>(() => login);
        Assert.Equal(["SESSION_AUTHENTICATION_FAILED", user], e.Description.Take(2));
    }

    [Fact]
    public void A_right_password_does_not_wait_behind_a_thousand_wrong_ones()
    {
        List<Task> wrong = Enumerable.Range(0, 1000)
            .Select(i => (Task)world.CallAsync("session.login_with_password", ApiWorld.Tcp, "root", $"{i}")).ToList();
        world.Call("session.login_with_password", ApiWorld.Tcp, "root", ApiWorld.Password);
        Assert.DoesNotContain(wrong, static t => t.IsCompleted);
    }

    [Fact]
    public void On_the_unix_socket_everyone_is_root()
    {
        string session = world.Call("session.login_with_password", ApiWorld.Local, "anyone", "").AsString();
        Assert.Equal("root", world.Database.GetString("session", session, "auth_user_name"));
        Assert.Equal("SM", world.Database.GetString("session", session, "originator"));
    }

    [Fact]
    public void Logout_ends_the_session_and_what_waits_for_it()
    {
        Session session = world.Sessions.CreateForPool("x");
        world.Call("session.logout", ApiWorld.Tcp, session.Ref);
        Assert.True(session.Ended.IsCancellationRequested);
        Assert.Equal($"SESSION_INVALID {session.Ref}", world.RefusalAs(session.Ref, "VM.get_all"));
        Assert.False(world.Database.Exists("session", session.Ref));
    }

    [Fact]
    public void A_session_ends_after_24_hours_without_a_call()
    {
        world.Time.Advance(TimeSpan.FromHours(23.9));
        world.Call("VM.get_all");
        world.Time.Advance(TimeSpan.FromHours(23.9));
        world.Call("VM.get_all");
        Assert.False(world.Database.Exists("session", world.Root)); // The sweep found the idle one.
        world.Time.Advance(TimeSpan.FromHours(24.1));
        Assert.Equal($"SESSION_INVALID {world.User}", world.Refusal("VM.get_all"));
    }

    [Fact]
    public void Beyond_the_limit_the_longest_idle_session_without_a_pending_task_goes()
    {
        List<Session> sessions = [];
        for (int i = 0; i < 399; i++)
        {
            sessions.Add(world.Sessions.CreateForPool("p"));
            world.Time.Advance(TimeSpan.FromMilliseconds(1));
        }

        world.Sessions.Authenticate(world.Root);
        world.Tasks.CreateExternal("busy", "", sessions[0], "");
        Session one = world.Sessions.CreateForPool("p");
        Assert.True(world.Database.Exists("session", sessions[0].Ref));
        Assert.False(world.Database.Exists("session", sessions[1].Ref));
        Assert.True(world.Database.Exists("session", world.Root));
        Assert.True(world.Database.Exists("session", one.Ref));
        Assert.True(world.Database.Exists("session", world.User)); // Another kind.
    }
}
