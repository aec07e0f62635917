using SrCheck;
using SrCheck.Checks;
using SrCheck.Reports;

namespace Unit.SrCheckTests;

public class CatalogTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void There_are_more_than_220_checks_each_with_an_id_of_its_own_and_all_its_words(bool isV1)
    {
        IReadOnlyList<Check> checks = Catalog.All(Options(isV1));
        Assert.True(checks.Count > 220, $"{checks.Count}");
        Assert.Equal(checks.Count, checks.Select(static c => c.Id).Distinct().Count());
        Assert.All(checks, static c => Assert.True(
            c.Reason.Length > 10 && c.Fix.Length > 5 && c.Spec.Length != 0 && c.Id == c.Id.Trim() && c.Id.Contains('.'), c.Id));
    }

    [Fact]
    public void Both_APIs_share_most_of_their_checks()
    {
        HashSet<string> v1 = [.. Catalog.All(Options(true)).Select(static c => c.Id)];
        Assert.True(Catalog.All(Options(false)).Count(c => v1.Contains(c.Id)) > 200);
    }

    [Fact]
    public void Every_number_of_the_field_is_explained_by_number_name_and_code()
    {
        Assert.Equal(173, ErrorNumbers.All.Count);
        Assert.Equal(24, ErrorNumbers.Find("24")!.Number);
        Assert.Equal(24, ErrorNumbers.Find("vdiinuse")!.Number);
        Assert.Equal(46, ErrorNumbers.Find("SR_BACKEND_FAILURE_46")!.Number);
        Assert.Null(ErrorNumbers.Find("9999"));
        int[] mandatory = [16, 24, 40, 44, 46, 47, 109, 110, 144];
        Assert.All(mandatory, static n => Assert.NotEqual("", ErrorNumbers.All[n].Remedy));
        Assert.Contains("remedy", Explanation.Of("44", Options(true)));
        Assert.Contains("why:", Explanation.Of("vdi.create.rounds-up", Options(true)));
        Assert.Null(Explanation.Of("nothing.at.all", Options(true)));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_new_plugin_has_fewer_than_150_lines(bool isV1)
    {
        string text = NewPlugin.Text("mine", isV1);
        Assert.True(text.Count(static c => c == '\n') < 150);
        Assert.DoesNotContain("@NAME@", text);
    }

    private static RunOptions Options(bool isV1) => new(isV1, "/x/plugin", "/x/datapath", "/x");
}
