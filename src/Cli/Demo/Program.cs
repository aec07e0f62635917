Console.Error.WriteLine("demo: not built yet");
return 2;
