Console.Error.WriteLine("xapi: not built yet");
return 2;
