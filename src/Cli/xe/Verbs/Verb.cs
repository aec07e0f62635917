using System.Text.Json.Nodes;
using Xe.Api;
using Xe.Grammar;
using Xe.Output;

namespace Xe.Verbs;

/// <summary>What a verb works with.</summary>
/// <param name="Connect">Opens a session with another pool (a migration's destination); it is closed with the first.</param>
internal sealed record Call(
    PoolClient Pool, Arguments Arguments, bool IsMinimal, bool IsJson, Interrupts Interrupts, TextWriter Notes, Func<FarPool, CancellationToken, Task<PoolClient>> Connect)
{
    /// <summary>For what is done in one call: the first interrupt ends it.</summary>
    public CancellationToken Cancel => Interrupts.Asked;

    /// <summary>Runs a message as a task of the pool and watches it to its end.</summary>
    public async Task<JsonNode?> RunAsync(string method, string what, params JsonNode?[] arguments) => (await WatchAsync(method, what, arguments)).Result;

    public Task<(JsonNode? Result, JsonObject Told)> WatchAsync(string method, string what, params JsonNode?[] arguments) =>
        new TaskWatch(Pool, Interrupts, Notes, ProgressView.For(IsMinimal || IsJson, what)).RunAsync(method, what, arguments);
}

/// <summary>Another pool, as a migration's keys name it.</summary>
internal sealed record FarPool(string Address, string User, string? Password, string? PasswordFile, string? Fingerprint);

/// <param name="Keys">What it accepts; a name that ends in ":" is a map, "*" is everything.</param>
/// <param name="Usage">The keys as help prints them.</param>
/// <param name="IsCommon">Shown by help without --all.</param>
internal sealed record Verb(
    string Name, IReadOnlyList<string> Keys, string Usage, string Summary, Func<Call, Task<Reply>> RunAsync)
{
    public string Example { get; init; } = "";

    public bool IsCommon { get; init; }
}
