// What the person sees: progress on standard error, so that standard output holds the result alone.
using System.Diagnostics;
using Spectre.Console;

namespace Demo;

internal sealed class Narrator(bool isQuiet)
{
    private const int PlainWidth = 250; // In a file or a pipe a line is a line.

    private readonly IAnsiConsole console = Open();
    private readonly long start = Stopwatch.GetTimestamp();
    private string lastLine = "";

    public void Tell(string text)
    {
        if (!isQuiet)
            console.MarkupLineInterpolated($"[grey]{Stopwatch.GetElapsedTime(start).TotalSeconds,6:0.0} s[/]  {text}");
    }

    /// <summary>Shows a task until <paramref name="poll"/> says it is over: a bar on a terminal, a line per tenth elsewhere.</summary>
    public async Task WatchAsync(string title, Func<Task<(double Fraction, string Text, bool IsOver)>> poll, CancellationToken cancellationToken)
    {
        if (isQuiet || !console.Profile.Capabilities.Ansi)
        {
            await PollAsync(poll, (fraction, text) => TellTenths(title, fraction, text), cancellationToken);
            return;
        }

        await console.Progress()
            .Columns(new TaskDescriptionColumn(), new ProgressBarColumn(), new PercentageColumn())
            .StartAsync(async context =>
            {
                ProgressTask bar = context.AddTask(title);
                await PollAsync(
                    poll,
                    (fraction, text) =>
                    {
                        bar.Value = 100 * fraction;
                        bar.Description = Markup.Escape($"{title}: {text}");
                    },
                    cancellationToken);
            });
    }

    private static IAnsiConsole Open()
    {
        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(Console.Error) });
        if (Console.IsErrorRedirected)
            console.Profile.Width = PlainWidth;
        return console;
    }

    private static async Task PollAsync(
        Func<Task<(double Fraction, string Text, bool IsOver)>> poll, Action<double, string> show, CancellationToken cancellationToken)
    {
        while (true)
        {
            (double fraction, string text, bool isOver) = await poll();
            show(fraction, text);
            if (isOver)
                return;
            await Task.Delay(100, cancellationToken);
        }
    }

    private void TellTenths(string title, double fraction, string text)
    {
        string line = $"{title}: {Math.Floor(fraction * 10) * 10:0} % {text.Split(' ')[0]}";
        if (line == lastLine)
            return;
        lastLine = line;
        Tell($"{title}: {fraction * 100:0} % {text}");
    }
}
