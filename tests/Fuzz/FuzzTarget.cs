namespace Fuzz;

/// <summary>A parser under fire, with its oracle.</summary>
/// <param name="Name">As it is typed.</param>
/// <param name="Seeds">Good inputs, from which the bad ones are made.</param>
/// <param name="RunAsync">
/// Gives one input to the parser. Returns the class of what happened (its words, not its numbers): a new class is a new way through the
/// parser. Throws <see cref="FuzzFindingException"/> when the oracle is broken.
/// </param>
internal sealed record FuzzTarget(string Name, IReadOnlyList<byte[]> Seeds, Func<byte[], ValueTask<string>> RunAsync)
{
    /// <summary>What the parser may throw; the place is the class. Anything else is a finding.</summary>
    public IReadOnlyList<Type> Expected { get; init; } = [];

    /// <summary>Words of the format.</summary>
    public IReadOnlyList<byte[]> Tokens { get; init; } = [];

    /// <summary>Makes checksums right again, so that what lies behind them is reached.</summary>
    public Action<byte[]>? Repair { get; init; }

    /// <summary>What one input may allocate, beside 64 times its own length.</summary>
    public long AllocationLimitBytes { get; init; } = 16 << 20;

    public int MaximumInputBytes { get; init; } = 16 * 1024;
}

/// <summary>An oracle is broken; the message says which.</summary>
internal sealed class FuzzFindingException(string message) : Exception(message);
