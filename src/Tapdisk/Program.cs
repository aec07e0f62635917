Console.Error.WriteLine("tapdisk: not built yet");
return 2;
