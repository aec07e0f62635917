Console.Error.WriteLine("xenopsd: not built yet");
return 2;
