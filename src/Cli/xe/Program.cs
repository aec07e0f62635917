// xe VERB key=value ...: the answer on standard output, everything else on standard error.
using Xe;
using Xe.Output;

using Interrupts interrupts = new();
return await new Shell(Environment.GetEnvironmentVariable, Console.Out, Console.Error, interrupts).RunAsync(args);
