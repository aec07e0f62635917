// What the results of driver commands look like (research/storage.md 3.4). Another shape is no answer.
using StorageAccess;
using StorageAccess.Wire;

namespace SmapiV1Adapter;

internal static class SmAnswers
{
    public static T Read<T>(SmCall call, RpcValue answer, Func<RpcValue, T> read)
    {
        try
        {
            return read(answer);
        }
        catch (RpcFormatException e)
        {
            throw SmProcess.Misshapen(call, answer, e.Message);
        }
    }

    public static void CheckNil(SmCall call, RpcValue answer)
    {
        if (answer is not RpcNil)
            throw SmProcess.Misshapen(call, answer, "nil was expected");
    }

    /// <summary>A struct or an array in place of a text is no answer, a number is one: text and 64-bit integers look the same.</summary>
    public static string Text(RpcValue value) =>
        value is RpcNil ? throw new RpcFormatException("a text was expected, not nil") : value.AsString();

    /// <summary>The location in a <c>{uuid, location}</c>.</summary>
    public static VdiId Vdi(RpcValue value)
    {
        RpcStruct vdi = value.AsStruct();
        Text(vdi.Get("uuid"));
        return new VdiId(Text(vdi.Get("location")));
    }

    /// <summary>The ways in: <c>params_nbd</c> always, <c>params</c> when the driver has a block device.</summary>
    public static Backend Backend(RpcValue value)
    {
        RpcStruct attach = value.AsStruct();
        string nbd = Text(attach.Get("params_nbd"));
        string? parameters = attach.Find("params") is { } given ? Text(given) : null;
        Dictionary<string, string> extra = attach.Find("xenstore_data")?.AsMap() ?? [];
        List<Implementation> implementations = [new XenDisk(parameters ?? nbd, extra, "vbd3")];
        if (parameters is not null)
            implementations.Add(new BlockDevicePath(parameters));
        implementations.Add(new NbdImplementation(nbd));
        return new Backend(implementations);
    }

    /// <summary>A driver that says nothing bypasses the cache; anything but a 0 says that it does.</summary>
    public static SmCaching Caching(RpcValue value)
    {
        RpcStruct attach = value.AsStruct();
        bool isDirect = attach.Find("o_direct") switch
        {
            null => true,
            RpcBool flag => flag.Value,
            { } other => Text(other) != "0",
        };
        return new SmCaching(!isDirect, attach.Find("o_direct_reason")?.AsString() ?? "");
    }
}
