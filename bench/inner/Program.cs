// ./dev bench inner: the loops that a copy, a digest and a reply spend their time in, each beside the framework's own way. BenchmarkDotNet,
// in this process: no project is generated, nothing is restored.
using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Running;
using BenchmarkDotNet.Toolchains.InProcess.Emit;
using Inner;

ManualConfig configuration = DefaultConfig.Instance
    .AddJob(Job.ShortRun.WithToolchain(InProcessEmitToolchain.Instance))
    .WithArtifactsPath(Path.Combine(Path.GetTempPath(), "storage-bench-inner"));
BenchmarkRunner.Run([typeof(ZeroScans), typeof(Digests), typeof(Bitmaps)], configuration, args);
