// xenopsd: the domains of one host, in a process of its own, so that the API daemon can be killed and started again without a guest
// noticing.
return await Xenops.Daemon.RunAsync(args);
