using StorageAccess.Wire;
using Xapi.Database;

namespace Unit.XapiTests;

/// <summary>What an SM driver's session may call, over every message of the model.</summary>
public sealed class StorageRoleTests : IAsyncDisposable
{
    private readonly ApiWorld world = new();

    public ValueTask DisposeAsync() => world.DisposeAsync();

    [Fact]
    public void Of_all_messages_a_driver_may_call_reads_and_the_fields_call_backs()
    {
        List<string> changes = [];
        foreach (MessageModel message in ApiWorld.Model.Classes.SelectMany(static c => c.Messages))
        {
            bool isRead = message.Name.StartsWith("get_", StringComparison.Ordinal);
            if (!Denied(message, OwnSr(out string own), own))
            {
                if (!isRead)
                    changes.Add(message.WireName);
            }
            else if (isRead)
            {
                Assert.Contains(message.ClassName, (string[])["session", "secret"]);
            }
        }

        Assert.Equal(47, changes.Count);
        Assert.All(changes, static c => Assert.Contains(
            c[..c.IndexOf('.', StringComparison.Ordinal)], (string[])["session", "task", "message", "secret", "host", "SR", "VDI", "PBD"]));
    }

    [Fact]
    public void An_object_of_another_SR_is_not_the_drivers_to_change()
    {
        string session = OwnSr(out string own);
        string other = world.Database.Create("SR");
        string mine = world.Database.Create("VDI", ("SR", own));
        string theirs = world.Database.Create("VDI", ("SR", other));
        foreach (string method in (string[])["VDI.add_to_sm_config", "VDI.add_to_other_config"])
        {
            world.Call(method, ApiWorld.Local, session, mine, "k", "v");
            Assert.StartsWith("PERMISSION_DENIED", world.RefusalAs(session, method, theirs, "k", "v"));
        }

        Assert.StartsWith("HANDLE_INVALID VDI", world.RefusalAs(session, "VDI.add_to_sm_config", "OpaqueRef:gone", "k", "v"));
        world.Call("VDI.get_record", ApiWorld.Local, session, theirs);
        Assert.StartsWith("PERMISSION_DENIED", world.RefusalAs(session, "session.get_uuid", world.Root));
    }

    private string OwnSr(out string sr) => world.Sessions.CreateForStorage(sr = world.Database.Create("SR")).Ref;

    /// <summary>Asked of the role itself: what the call would do does not matter.</summary>
    private bool Denied(MessageModel message, string session, string own)
    {
        string reference = message.ClassName switch
        {
            "VDI" or "PBD" => world.Database.Create(message.ClassName, ("SR", own)),
            _ => own,
        };
        try
        {
            Xapi.Rpc.StorageRole.Check(
                message, world.Sessions.Authenticate(session), [reference, reference, reference, own], world.Database);
            return false;
        }
        catch (Xapi.XapiException e) when (e.Code == "PERMISSION_DENIED")
        {
            return true;
        }
    }
}
