using StorageAccess.Wire;
using Xapi.Database;
using Xapi.Rpc;

namespace Unit.XapiTests;

/// <summary>The rows of class message.</summary>
public sealed class AlertTests : IAsyncDisposable
{
    private readonly ApiWorld world = new();
    private readonly string uuid;

    public AlertTests()
    {
        AlertMessages.AddTo(world.Messages, world.Time);
        uuid = world.Database.GetString("SR", world.Database.Create("SR"), "uuid");
    }

    public ValueTask DisposeAsync() => world.DisposeAsync();

    [Fact]
    public void A_message_is_kept_found_and_destroyed()
    {
        string first = Create("FIRST");
        world.Time.Advance(TimeSpan.FromMinutes(1));
        string second = Create("SECOND");
        RpcStruct record = world.Call("message.get_record", second).AsStruct();
        Assert.Equal(("SECOND", "SR", "3"), (record.Get("name").AsString(), record.Get("cls").AsString(), record.Get("priority").AsString()));
        Assert.Equal([first, second], Since("19700101T00:00:00Z"));
        Assert.Equal([second], Since(record.Get("timestamp").AsString()));
        Assert.Equal([first, second], world.Call("message.get_all").AsArray().Select(static m => m.AsString()));
        Assert.Equal([first], Keys(world.Call("message.get_all_records_where", "field \"name\" = \"FIRST\"")));
        Assert.Equal(second, world.Call("message.get_by_uuid", record.Get("uuid")).AsString());
        world.Call("message.destroy", first);
        world.Call("message.destroy_many", RpcValue.Strings([second]));
        Assert.Empty(Keys(world.Call("message.get_all_records")));

        IEnumerable<string> Since(string time) => Keys(world.Call("message.get", "SR", uuid, new RpcDateTime(time)));
    }

    [Fact]
    public void A_message_outlives_a_restart_and_is_about_something_that_is_there()
    {
        Create("KEPT");
        Assert.Equal("UUID_INVALID SR nosuch", world.Refusal("message.create", "N", "1", "SR", "nosuch", ""));
        world.Reopen();
        Assert.Equal("KEPT", world.Database.GetString("message", Assert.Single(world.Database.All("message")), "name"));
    }

    private static IEnumerable<string> Keys(RpcValue map) => map.AsStruct().Members.Select(static m => m.Key);

    private string Create(string name) => world.Call("message.create", name, "3", "SR", uuid, "body").AsString();
}
