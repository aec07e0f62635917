// Passing open descriptors over a unix socket (SCM_RIGHTS). The framework offers no ancillary data. Layouts: Linux, 64 bit (msghdr 56
// bytes, cmsghdr 16 before its data).
using System.Net.Sockets;
using System.Runtime.InteropServices;

namespace Platform;

public static partial class Posix
{
    private const int SocketLevel = 1;
    private const int ScmRights = 1;
    private const int ControlHeaderBytes = 16;
    private const int MostDescriptors = 8;
    private const int ReceiveCloseOnExec = 0x40000000;

    /// <summary>Takes one message that carries a socket. More descriptors than one are closed: nobody would know of them.</summary>
    /// <param name="body">Gets what was sent beside it.</param>
    /// <returns>The socket and the body's length, or null when the message carries no descriptor or cannot be read.</returns>
    public static unsafe (SafeSocketHandle Socket, int BodyBytes)? ReceiveSocket(SafeSocketHandle from, Span<byte> body)
    {
        byte* control = stackalloc byte[ControlHeaderBytes + (MostDescriptors * sizeof(int))];
        fixed (byte* bodyStart = body)
        {
            IoVector vector = new() { Start = bodyStart, Length = (nuint)body.Length };
            MessageHeader message = new()
            {
                Vectors = &vector,
                VectorCount = 1,
                Control = control,
                ControlLength = ControlHeaderBytes + (MostDescriptors * sizeof(int)),
            };
            nint received = recvmsg(from, &message, ReceiveCloseOnExec);
            if (received < 0 || message.ControlLength < ControlHeaderBytes + sizeof(int))
                return null;
            int count = (int)((*(nuint*)control - ControlHeaderBytes) / sizeof(int));
            int* descriptors = (int*)(control + ControlHeaderBytes);
            if (((int*)control)[2] != SocketLevel || ((int*)control)[3] != ScmRights || count is < 1 or > MostDescriptors)
                return null;
            for (int i = 1; i < count; i++)
                _ = close(descriptors[i]);
            return (new SafeSocketHandle(descriptors[0], ownsHandle: true), (int)received);
        }
    }

    [LibraryImport("libc", SetLastError = true)]
    private static unsafe partial nint recvmsg(SafeSocketHandle socket, MessageHeader* message, int flags);

    [StructLayout(LayoutKind.Sequential)]
    private unsafe struct IoVector
    {
        public byte* Start;
        public nuint Length;
    }

    [StructLayout(LayoutKind.Sequential)]
    private unsafe struct MessageHeader
    {
        public byte* Name;
        public uint NameLength;
        public IoVector* Vectors;
        public nuint VectorCount;
        public byte* Control;
        public nuint ControlLength;
        public int Flags;
    }
}
