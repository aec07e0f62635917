// Generated chains (tests/Unit/Vhd/ChainModel.cs), read by others: through our NBD server by nbdcopy, and single images by qemu-img.
using Nbd;
using Platform;
using Support;
using Unit.VhdTests;
using Vhd;

namespace Conformance.VhdTests;

public sealed class ChainJudgesTests : IDisposable
{
    // Of each kind; STORAGE_CHAINS=2000 judges so many.
    private static readonly int Chains =
        int.Parse(Environment.GetEnvironmentVariable("STORAGE_CHAINS") ?? "12", System.Globalization.CultureInfo.InvariantCulture);

    private readonly TemporaryDirectory folder = TemporaryDirectory.InMemory();

    public void Dispose() => folder.Dispose();

    [SkippableFact]
    public async Task Nbdcopy_reads_a_generated_chain_as_the_model_has_it()
    {
        Skip.IfNot(Tool.Exists("nbdcopy"), Tool.Missing("nbdcopy"));
        int deepest = 0;
        for (int seed = 100; seed < 100 + Chains; seed++)
        {
            using ChainModel model = new(seed);
            await model.DeepenAsync(1 + seed % 12);
            for (int step = 0; step < 6; step++)
                await model.StepAsync(1 + seed % 12);
            deepest = Math.Max(deepest, model.Depth);
            await using VhdChain chain = VhdChain.Open(model.LeafPath, new VhdOpenOptions { IsReadOnly = true });
            NbdExport export = new("disk", chain);
            NbdServerOptions options = new() { Find = name => name == "disk" ? export : null };
            await using NbdListener listener = NbdListener.ListenUnix(folder.File("s.sock"), options, maxConnections: 4);
            ChildResult result = await Tool.RunAsync("nbdcopy", $"nbd+unix:///disk?socket={folder.File("s.sock")}", folder.File("out.img"));
            Assert.True(result.ExitCode == 0, result.StandardError);
            byte[] found = await File.ReadAllBytesAsync(folder.File("out.img"));
            Assert.True(model.Content.SequenceEqual(found), $"chain {seed}");
            File.Delete(folder.File("out.img"));
        }

        await Console.Out.WriteLineAsync($"{Chains} chains up to {deepest} deep read by nbdcopy as the model has them");
    }

    [SkippableFact]
    public async Task Qemu_reads_a_single_image_after_resizes_and_repairs_as_the_model_has_it()
    {
        Skip.IfNot(Tool.Exists("qemu-img"), Tool.Missing("qemu-img"));
        int judged = 0;
        // Every fourth begins with a raw parent and is never single.
        for (int seed = 201; seed < 201 + Chains; seed += seed % 4 == 3 ? 2 : 1)
        {
            using ChainModel model = new(seed);
            for (int step = 0; step < 8; step++)
                await model.StepAsync(maxDepth: 1);
            string raw = folder.File("judge.raw");
            ChildResult result = await Tool.RunAsync("qemu-img", "convert", "-f", "vpc", "-O", "raw", model.LeafPath, raw);
            Assert.True(result.ExitCode == 0, result.StandardError);
            byte[] found = await File.ReadAllBytesAsync(raw);
            Assert.True(model.Content.SequenceEqual(found), $"image {seed}");
            judged++;
        }

        await Console.Out.WriteLineAsync($"{judged} images read by qemu-img as the model has them");
        Assert.True(judged > Chains / 2);
    }
}
