Console.Error.WriteLine("vhd-util: not built yet");
return 2;
