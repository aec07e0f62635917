// xenopsd: the domains of one host, in a process of its own, so that the API daemon can be killed and started again without a guest
// noticing; and each simulated guest in one of its own, so that the same holds for xenopsd.
return args is ["guest", .. string[] rest] ? await Xenops.Guests.GuestDaemon.RunAsync(rest) : await Xenops.Daemon.RunAsync(args);
