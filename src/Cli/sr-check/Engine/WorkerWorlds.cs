using SrCheck.Checks;

namespace SrCheck;

/// <summary>
/// One worker's worlds: the shared one lives from check to check as long as checks leave it as they found it.
/// </summary>
internal sealed class WorkerWorlds(WorldMaker maker) : IAsyncDisposable
{
    /// <summary>A plugin that cannot make an SR this often is not asked again.</summary>
    private const int AttemptLimit = 3;

    private World? shared;
    private int failures;
    private Exception? lastFailure;

    public async Task<World> TakeAsync(Stage wanted)
    {
        if (wanted == Stage.Shared && shared is not null)
            return shared;
        if (!maker.HasManyPlaces)
            await DisposeAsync();
        if (wanted == Stage.Bare)
            return maker.Make();
        if (failures >= AttemptLimit)
            throw lastFailure!;
        World world = maker.Make();
        try
        {
            await world.SetUpAsync();
        }
        catch (Exception e)
        {
            failures++;
            lastFailure = e;
            await world.DisposeAsync();
            throw;
        }

        if (wanted == Stage.Shared)
            shared = world;
        return world;
    }

    public async Task GiveBackAsync(World world, bool isTrusted)
    {
        if (world == shared && isTrusted && await world.TidyAsync())
            return;
        if (world == shared)
            shared = null;
        await world.DisposeAsync();
    }

    public async ValueTask DisposeAsync()
    {
        World? last = shared;
        shared = null;
        if (last is not null)
            await last.DisposeAsync();
    }
}
