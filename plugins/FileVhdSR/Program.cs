// FileVhdSR: a SMAPIv1 driver in C#. One argument, an XML-RPC methodCall; one methodResponse on stdout; a fault is an answer too, so the exit code is 0
// either way (research/storage.md 3.1, 3.4).
using FileVhdSR;
using StorageAccess.Wire;
using VhdFolder;

if (args.Length != 1)
{
    Console.Error.WriteLine("FileVhdSR: one argument is expected, an XML-RPC methodCall");
    return 2;
}

try
{
    Request request = Request.Read(args[0]);
    Console.Out.Write(XmlRpc.WriteResponse(await new Driver(request).RunAsync(CancellationToken.None)));
}
catch (DriverException e)
{
    Console.Out.Write(XmlRpc.WriteFault(e.Number, e.Message));
}
catch (RpcFormatException e)
{
    Console.Out.Write(XmlRpc.WriteFault(DriverException.BadRequest, $"bad request: {e.Message}"));
}

return 0;
