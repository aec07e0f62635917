// After a restart: what the records say is compared with what is really so, and made right by the drivers' idempotent calls, or reported.
// Nothing is assumed to be detached because it is not known (research/storage.md 2.5 and 10.2 tell what that costs).
using StorageAccess.Tap;

namespace StorageAccess;

/// <summary>What a restart found: one sentence each, for a log and for DP.diagnostics.</summary>
public sealed record RestartReport(IReadOnlyList<string> Mended, IReadOnlyList<string> Unmended);

public sealed partial class StorageLayer
{
    /// <summary>
    /// Takes every SR and VDI whose last call got no answer to what its datapaths want, starts again what has died, and takes down what
    /// leaked. After a start of the machine nothing is attached, and that is what is recorded. What cannot be mended now stays marked, and
    /// is tried again before its next use.
    /// </summary>
    public async Task<RestartReport> ReconcileAsync(string dbg, CancellationToken cancellationToken)
    {
        List<string> mended = [], unmended = [];
        if (state.BootId is { } boot && boot != reality.BootId)
            ForgetBoot(mended);
        state.BootId = reality.BootId;
        foreach (SrRow sr in state.Srs())
        {
            if (!backends.ContainsKey(sr.Type))
            {
                if (sr.IsAttached || sr.IsUnsettled)
                    unmended.Add($"SR {sr.Sr} is attached and its driver {sr.Type} is not there any more");
                continue;
            }

            if (await SettledAsync(dbg, sr, mended, unmended, cancellationToken))
            {
                foreach (VdiRow vdi in state.Vdis(sr.Sr))
                    await MendAsync(dbg, vdi, mended, unmended, cancellationToken);
            }
        }

        return new RestartReport(mended, unmended);
    }

    /// <summary>
    /// Open disks of a control folder's tapdisks that belong to no datapath, a sentence each: a driver's or a daemon's death may have left them,
    /// or they are somebody else's. They are reported, here and by DP.diagnostics, and never touched.
    /// </summary>
    public async Task<IReadOnlyList<string>> UntrackedTapdisksAsync(TapControl control, CancellationToken cancellationToken)
    {
        HashSet<(int, int)> tracked = [.. state.Srs().SelectMany(sr => state.Vdis(sr.Sr)).Select(vdi => ServerOf(vdi)).OfType<(int, int)>()];
        IReadOnlyList<TapEntry> entries = await control.ListAsync(cancellationToken);
        return untracked =
        [
            .. entries.Where(entry => entry is { ProcessId: { } processId, Minor: { } minor, Arguments.Length: > 0 } && !tracked.Contains((processId, minor)))
                .Select(static entry => $"tapdisk {entry.ProcessId}, minor {entry.Minor}, serves {entry.Arguments} and belongs to no datapath; it is left alone"),
        ];
    }

    /// <summary>What the last look found.</summary>
    internal IReadOnlyList<string> Untracked => untracked;

    private void ForgetBoot(List<string> mended)
    {
        List<DatapathRow> gone = state.Datapaths();
        foreach (SrRow sr in state.Srs().Where(static sr => sr.IsAttached || sr.IsUnsettled))
            mended.Add($"SR {sr.Sr} was attached before this start of the machine, and is not now");
        mended.AddRange(gone.Select(row => $"VDI {row.Vdi} of SR {row.Sr}: {row} went with the last start of the machine"));
        state.ForgetBoot();
    }

    /// <summary>An attach or detach of the SR that got no answer is taken back to what was before it.</summary>
    private async Task<bool> SettledAsync(string dbg, SrRow sr, List<string> mended, List<string> unmended, CancellationToken cancellationToken)
    {
        if (!sr.IsUnsettled)
            return sr.IsAttached;
        string was = sr.IsAttached ? "attached" : "detached";
        try
        {
            using IDisposable held = await srLocks.TakeAsync(sr.Sr.Value, $"restart ({dbg})", cancellationToken);
            IStorageBackend backend = BackendOf(sr);
            await SettledSrAsync(
                sr,
                () => sr.IsAttached
                    ? backend.SrAttachAsync(dbg, sr.Sr, sr.DeviceConfig, cancellationToken)
                    : backend.SrDetachAsync(dbg, sr.Sr, cancellationToken),
                sr.IsAttached);
            mended.Add($"SR {sr.Sr} is {was} again: a call had got no answer");
            return sr.IsAttached;
        }
        catch (StorageException e)
        {
            unmended.Add($"SR {sr.Sr} should be {was} and may not be: {e.Message}");
            return false;
        }
    }

    private async Task MendAsync(string dbg, VdiRow row, List<string> mended, List<string> unmended, CancellationToken cancellationToken)
    {
        string? why = WhyMend(row);
        if (why is null)
            return;
        try
        {
            using IDisposable held = await VdiLocks(row.Sr).TakeAsync(row.Vdi.Value, $"restart ({dbg})", cancellationToken);
            if (!row.IsUnsettled)
                state.Save(row with { IsUnsettled = true });
            await SettleAsync(dbg, row.Sr, row.Vdi, cancellationToken);
            mended.Add($"VDI {row.Vdi} of SR {row.Sr} is {DpStatVdi(row.Sr, row.Vdi).Superstate} again: {why}");
        }
        catch (StorageException e)
        {
            unmended.Add($"VDI {row.Vdi} of SR {row.Sr}: {why}, and it could not be mended: {e.Message}");
        }
    }

    private string? WhyMend(VdiRow row)
    {
        if (row.IsUnsettled)
            return "a call had got no answer";
        if (state.Datapaths(row.Sr, row.Vdi).Any(static d => d.IsLeaked))
            return "a datapath had leaked";
        return row is { State.Phase: VdiPhase.Activated, Backend: { } backend } && !reality.IsServed(backend) ? "nobody served it" : null;
    }
}
