// sr-check: see docs/sr-check.md. What it is about is in Checks/; how it runs them in Engine/; how plugins are spoken to in Plugins/.
using SrCheck;

return await CommandLine.RunAsync(args);
