using Migration;

namespace Simulation;

/// <summary>A world without chance: what breaks is written down, and happens right after a record is durable, or to a call by its name.</summary>
internal sealed class Scenario
{
    private readonly List<(Type Record, Action<World> Event)> events = [];
    private readonly Dictionary<string, (int Left, Func<Exception> Make)> failures = [];
    private readonly Dictionary<string, int> lostAnswers = [];

    public Scenario(TimeSpan keepSourceFor = default, bool hasWitness = false)
    {
        World = new World(1, options: new MigrationOptions
        {
            StallLimit = TimeSpan.FromSeconds(1),
            ResumeWindow = TimeSpan.FromMinutes(2),
            KeepSourceFor = keepSourceFor,
            Witness = hasWitness ? new WitnessAddress("https://w", "cc", "key") : null,
        })
        {
            OnRecord = Recorded,
            OnCall = Called,
            OnAnswer = Answered,
        };
    }

    public World World { get; }

    public static MigrationException Error(string message = "ordered to fail") => new("VM_MIGRATE_FAILED", [], MigrationSide.Destination, message);

    /// <summary>Once, right after the first record of this kind.</summary>
    public Scenario At<T>(Action<World> what)
    {
        events.Add((typeof(T), what));
        return this;
    }

    public Scenario Fails(string call, Func<Exception> how, int times = 1)
    {
        failures[call] = (times, how);
        return this;
    }

    public Scenario LosesAnswers(string request, int times)
    {
        lostAnswers[request] = times;
        return this;
    }

    public World Moves() => Ends("moved");

    public World Stays() => Ends("stayed");

    public World Ends(string outcome)
    {
        World.Run();
        Assert.Null(World.Broken);
        Assert.Equal(outcome, World.Outcome);
        Assert.Empty(events);
        return World;
    }

    private void Recorded(object record)
    {
        int found = events.FindIndex(e => e.Record == record.GetType());
        if (found < 0)
            return;
        Action<World> what = events[found].Event;
        events.RemoveAt(found);
        what(World);
    }

    private Exception? Called(string what)
    {
        if (!failures.TryGetValue(what, out (int Left, Func<Exception> Make) failure) || failure.Left == 0)
            return null;
        failures[what] = failure with { Left = failure.Left - 1 };
        return failure.Make();
    }

    private bool Answered(string what) => lostAnswers.TryGetValue(what, out int left) && (lostAnswers[what] = left - 1) >= 0;
}
