// Finishing what the collector's journals name, for the collector itself and for whoever takes the folder's lock after it died. The lock is
// held. A change that cannot be finished now (a tapdisk that does not pause, a damaged image) keeps its journal; the collector does
// nothing more in the folder until it is gone, and the chain doctor tells of it.
using Platform;

namespace Vhd.Collect;

public static class CollectRecovery
{
    /// <summary>The folder's lock, with everything finished or undone that a dead holder left.</summary>
    public static async Task<IDisposable> LockAsync(ImageFolder folder, IFolderUsers users, CancellationToken cancellationToken)
    {
        IDisposable held = await users.LockAsync(cancellationToken);
        try
        {
            await RecoverAsync(folder, users);
            return held;
        }
        catch
        {
            held.Dispose();
            throw;
        }
    }

    internal static async Task RecoverAsync(ImageFolder folder, IFolderUsers users)
    {
        folder.RecoverForks();
        foreach (string key in folder.Journals())
        {
            if (folder.ReadJournal(key) is { Stage: not CollectStage.Merge } journal)
                await TryFinishAsync(folder, users, journal);
        }
    }

    /// <summary>Not cancelled: a change that began is finished.</summary>
    internal static async Task FinishAsync(ImageFolder folder, IFolderUsers users, CollectJournal journal)
    {
        switch (journal.Stage)
        {
            case CollectStage.Grow when folder.Has(journal.Key) && folder.Has(journal.Parent):
                Grow(folder, journal);
                break;
            case CollectStage.Relink:
                await RelinkAsync(folder, users, journal);
                break;
            case CollectStage.Swap:
                Swap(folder, journal);
                break;
        }

        foreach (TapReference tap in journal.Taps)
            await users.ResumeAsync(tap);
        folder.RemoveJournal(journal.Key);
    }

    /// <summary>The parent becomes as large as the image; nobody reads it meanwhile, for its block table may move.</summary>
    private static void Grow(ImageFolder folder, CollectJournal journal)
    {
        long sizeBytes = folder.ReadInfo(journal.Key).VirtualSizeBytes;
        // Of the same size too: a resize that was cut short is finished by doing it again.
        if (folder.ReadInfo(journal.Parent).VirtualSizeBytes <= sizeBytes)
            VhdResize.Apply(folder.Store, folder.PathOf(journal.Parent), sizeBytes, mayLoseData: false);
    }

    private static async Task TryFinishAsync(ImageFolder folder, IFolderUsers users, CollectJournal journal)
    {
        try
        {
            await FinishAsync(folder, users, await HeldAgainAsync(folder, users, journal));
        }
        catch (IOException)
        {
            // It stays, as said above: whoever wants the folder for something else is not kept from it.
        }
    }

    /// <summary>
    /// The dead one's pauses may have ended with it (docs/formats/tapdisk-control.md, "pause"), and the guests have written since: they wait
    /// again before a file of theirs is touched. A swap whose rename was not made is undone: the disk holds what its base does not.
    /// </summary>
    private static async Task<CollectJournal> HeldAgainAsync(ImageFolder folder, IFolderUsers users, CollectJournal journal)
    {
        if (journal.Stage is not (CollectStage.Grow or CollectStage.Swap))
            return journal;
        try
        {
            foreach (TapReference tap in journal.Taps)
                await users.PauseAsync(tap, CancellationToken.None);
        }
        catch (IOException)
        {
            foreach (TapReference tap in journal.Taps)
                await users.ResumeAsync(tap);
            throw;
        }

        if (journal.Stage != CollectStage.Swap || !folder.Has(journal.Parent))
            return journal;
        VhdResize.Tidy(folder.Store, folder.PathOf(journal.Parent));
        return journal with { Stage = CollectStage.Hold };
    }

    /// <summary>
    /// Each child gets the image's parent instead, which shows the same; a guest waits for that of its own disk only. Then the other
    /// tapdisks above open their chains anew, and the image goes.
    /// </summary>
    private static async Task RelinkAsync(ImageFolder folder, IFolderUsers users, CollectJournal journal)
    {
        if (!folder.Has(journal.Parent))
            throw new VhdException(VhdError.ParentMissing, folder.PathOf(journal.Parent), $"it holds what {journal.Key} held, and is gone");
        foreach (string child in journal.Children.Where(folder.Has))
        {
            if (NeedsRelink(folder, child, journal))
                await WhilePausedAsync(
                    users,
                    [.. journal.Taps.Where(tap => tap.Key == child)],
                    () => ParentChange.Apply(folder.Store, folder.PathOf(child), folder.PathOf(journal.Parent), isParentRaw: false));
        }

        foreach (TapReference tap in journal.Taps.Where(tap => !journal.Children.Contains(tap.Key)))
            await WhilePausedAsync(users, [tap], static () => { });
        ImageForest forest = folder.Scan(FolderUse.None, 0);
        // An image that cannot be read may be a child that nobody knew of.
        if (forest.ChildrenOf(journal.Key).Count == 0 && forest.Unreadable.Count == 0)
            folder.Delete(journal.Key);
    }

    private static bool NeedsRelink(ImageFolder folder, string child, CollectJournal journal)
    {
        try
        {
            return folder.ParentOf(folder.ReadInfo(child)) != journal.Parent;
        }
        catch (VhdException)
        {
            return true; // A header that a loss of power cut is mended by being written again.
        }
    }

    private static async Task WhilePausedAsync(IFolderUsers users, IReadOnlyList<TapReference> taps, Action change)
    {
        try
        {
            foreach (TapReference tap in taps)
                await users.PauseAsync(tap, CancellationToken.None);
            change();
        }
        finally
        {
            foreach (TapReference tap in taps)
                await users.ResumeAsync(tap);
        }
    }

    /// <summary>The name changes in one moment; before it and after it the disk shows the same.</summary>
    private static void Swap(ImageFolder folder, CollectJournal journal)
    {
        if (folder.Has(journal.Parent))
        {
            long sizeBytes = folder.ReadInfo(journal.Key).VirtualSizeBytes;
            // The merge made zeros of what the parent held past the disk's end. Of the same size too, as above.
            if (folder.ReadInfo(journal.Parent).VirtualSizeBytes >= sizeBytes)
                VhdResize.Apply(folder.Store, folder.PathOf(journal.Parent), sizeBytes, mayLoseData: true);
            folder.Store.Rename(folder.PathOf(journal.Parent), folder.PathOf(journal.Key));
            folder.Store.SyncFolder(folder.Path);
        }

        // Only now that no other image can be taken for a disk; again when it was done, for the footer has a copy.
        if (folder.Has(journal.Key))
            VhdImage.SetHidden(folder.Store, folder.PathOf(journal.Key), false);
    }
}
