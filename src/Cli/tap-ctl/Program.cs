Console.Error.WriteLine("tap-ctl: not built yet");
return 2;
