using Nbd;

namespace Unit.NbdTests;

public class ByteCoverageTests
{
    [Fact]
    public void Every_sequence_of_pieces_is_judged_as_a_bitmap_judges_it()
    {
        // All sequences of up to four pieces within five bytes.
        (int Start, int Length)[] pieces = [.. from start in Enumerable.Range(0, 5) from length in Enumerable.Range(1, 5 - start) select (start, length)];
        int sequences = pieces.Length * pieces.Length * pieces.Length * pieces.Length;
        for (int code = 0; code < sequences; code++)
        {
            ByteCoverage coverage = new();
            int map = 0;
            for (int step = 0, rest = code; step < 4; step++, rest /= pieces.Length)
            {
                (int start, int length) = pieces[rest % pieces.Length];
                int bits = ((1 << length) - 1) << start;
                bool isNew = (map & bits) == 0;
                Assert.Equal(isNew, coverage.TryAdd(start, length));
                if (!isNew)
                    break;
                map |= bits;
                Assert.Equal(int.PopCount(map), coverage.TotalBytes);
            }
        }
    }

    [Fact]
    public void Absurdly_many_pieces_are_refused()
    {
        ByteCoverage coverage = new();
        int taken = 0;
        while (taken < 100_000 && coverage.TryAdd(taken * 2, 1))
            taken++;
        Assert.Equal(4096, taken);
    }
}
