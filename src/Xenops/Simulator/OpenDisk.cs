using Platform;

namespace Xenops.Simulator;

/// <summary>Opens what an NBD URI names.</summary>
public delegate Task<IBlockDevice> DiskOpener(string uri, CancellationToken cancellationToken);

/// <summary>An open disk of a guest. Whoever opened it closes it.</summary>
public sealed record OpenDisk(Vbd Vbd, IBlockDevice Device);
