// An error as the field prints it (code and parameters, which scripts look for), and below it a sentence for people: what and why, what
// state things are in, what to do next. A code that is not in the table still gets its code, its parameters and the daemon's own words.
using System.Globalization;
using System.Text;
using Xe.Grammar;

namespace Xe.Output;

internal static class ErrorText
{
    /// <param name="Why">{0}, {1}: the code's parameters; a message may send fewer.</param>
    /// <param name="IsUntouched">It is refused before anything is done, always.</param>
    private sealed record Explanation(string Why, string Next, bool IsUntouched = true);

    private static readonly Dictionary<string, Explanation> Known = new()
    {
        ["UUID_INVALID"] = new("There is no {0} \"{1}\" in this pool.", "Look for it with the list verb of its class, and mind which pool -s names."),
        ["HANDLE_INVALID"] = new("The {0} {1} is not there any more.", "List its class again: somebody removed it meanwhile."),
        ["NOT_UNIQUE"] = new("More than one {0} is meant by that.", "Give its uuid."),
        ["VM_BAD_POWER_STATE"] = new("The VM is {2}, and for this it must be {1}.", "Bring it there (vm-start, vm-shutdown, vm-pause, vm-unpause), then call again."),
        ["OTHER_OPERATION_IN_PROGRESS"] = new("The {0} is busy with another operation.", "See xe task-list, wait for it or cancel it, then call again."),
        ["OPERATION_NOT_ALLOWED"] = new("It is not allowed now: {0}.", "Mend what the reason says, then call again."),
        ["VM_IS_TEMPLATE"] = new("That is a template; it cannot run.", "Make a VM from it first."),
        ["VDI_IN_USE"] = new("Somebody has the disk: {2}.", "xe vdi-who-holds uuid=UUID says who and since when; shut that VM down or wait for it."),
        ["VDI_NOT_AVAILABLE"] = new("The disk cannot be reached.", "See whether its SR is plugged (xe pbd-list), then xe vdi-who-holds uuid=UUID."),
        ["VDI_MISSING"] = new("The SR has no such disk.", "xe sr-scan uuid=SR brings the pool's list in step with the SR."),
        ["VDI_TOO_LARGE"] = new("The disk would be larger than the SR can hold ({1}).", "Choose a smaller size, or split the data over two disks."),
        ["VDI_NOT_IN_MAP"] = new("A disk of the VM has no destination.", "Give destination-sr-uuid= or vdi:UUID=SR for it."),
        ["VDI_CBT_ENABLED"] = new("Changed blocks are tracked on the disk, and it cannot move with that.", "xe vdi-disable-cbt uuid=UUID, then call again."),
        ["VIF_NOT_IN_MAP"] = new("A network interface of the VM has no destination.", "Give vif:UUID=NETWORK for it."),
        ["SR_HAS_PBD"] = new("The SR is still plugged.", "xe sr-unplug uuid=UUID, then call again."),
        ["SR_NOT_ATTACHED"] = new("The SR is not plugged.", "xe sr-plug uuid=UUID, then call again."),
        ["SR_UNKNOWN_DRIVER"] = new("The pool has no driver for SRs of type {0}.", "Install it, or choose another type= (the pool's daemon says at its start which it has)."),
        ["SR_FULL"] = new("The SR has no room: {0} needed, {1} there.", "Free some (xe sr-doctor uuid=UUID says what collecting would free), or choose another SR."),
        ["SR_NOT_FOUND"] = new("There is no SR to move to.", "Make one in the other pool."),
        ["SR_OPERATION_NOT_SUPPORTED"] = new("The SR's driver cannot do this.", "Use an SR of another type."),
        ["SR_DOES_NOT_SUPPORT_MIGRATION"] = new("The SR {0} cannot take part in a migration: {1}.", "Choose another destination SR, or move the disk to another SR first."),
        ["HOST_OFFLINE"] = new("The host {0} is not this daemon's, or is off.", "Choose another host=."),
        ["HOST_NOT_ENOUGH_FREE_MEMORY"] = new("The host has too little memory: {0} needed, {1} there.", "Free some there, or choose another host=."),
        ["MIRROR_FAILED"] = new(
            "The copy of disk {0} stopped being in step with its source, and was given up before the guest was made to wait.",
            "See the network between the pools and the room in the destination's SR, then start the migration again.", IsUntouched: false),
        ["VM_MIGRATE_FAILED"] = new("The migration did not happen: {3}.", "Mend what the reason says, then start it again: both sides have unwound.", IsUntouched: false),
        ["CANNOT_CONTACT_HOST"] = new("The near pool cannot reach the far one at {0}.", "It connects from the near pool's host, not from here: see routes and firewalls there."),
        ["TOO_MANY_STORAGE_MIGRATES"] = new("{0} migrations run on this host already.", "Wait for one to end (xe migration-list)."),
        ["INVALID_VALUE"] = new("{0} cannot be \"{1}\".", "Give another value."),
        ["FIELD_TYPE_ERROR"] = new("{0} is of another kind than what was given.", "See what it holds with the param-get verb."),
        ["MAP_DUPLICATE_KEY"] = new("{1} has the key {3} already.", "Remove it first, or use the param-set verb."),
        ["NO_SUCH_KEY"] = new("There is no such key.", "See the map with the param-get verb."),
        ["MESSAGE_METHOD_UNKNOWN"] = new("This pool's daemon is older or of another kind.", "Update it; or call a pool that has it."),
        ["NOT_IMPLEMENTED"] = new("This pool's daemon is older or of another kind.", "Update it; or call a pool that has it."),
        ["PERMISSION_DENIED"] = new("This user may not do this: {0}.", "Log in as another user (-u)."),
        ["RBAC_PERMISSION_DENIED"] = new("This user may not do this: {0}.", "Log in as another user (-u)."),
        ["SESSION_AUTHENTICATION_FAILED"] = new("User or password is wrong.", "See -u, and what is in the password file."),
        ["SESSION_INVALID"] = new("The session ended meanwhile: the daemon was started again.", "Call again.", IsUntouched: false),
        ["INTERNAL_ERROR"] = new("The daemon failed by its own fault: {0}.", "See its log; what it had begun is undone or finished when it is started again.", IsUntouched: false),
        ["SM_PLUGIN_COMMUNICATION_FAILURE"] = new("The SR's driver gave no answer that makes sense.", "sr-check proves a driver; the daemon's log has its output.", IsUntouched: false),
        ["SR_BACKEND_FAILURE_24"] = new("Somebody has the disk: {1}.", "xe vdi-who-holds uuid=UUID says who and since when."),
        ["SR_BACKEND_FAILURE_40"] = new("The SR could not be scanned: {1}.", "See whether its storage is there; nothing was forgotten because of this."),
        ["SR_BACKEND_FAILURE_44"] = new("The SR has no room: {1}.", "xe sr-doctor uuid=UUID says what collecting would free; or choose another SR."),
        ["SR_BACKEND_FAILURE_46"] = new("The disk is not available: {1}.", "xe vdi-who-holds uuid=UUID says who has it and since when."),
        ["SR_BACKEND_FAILURE_47"] = new("The SR is not available: {1}.", "See device-config (xe pbd-list) and whether its storage is there."),
        ["SR_BACKEND_FAILURE_109"] = new("The disk's chain is as long as it may be: {1}.", "xe sr-doctor uuid=UUID shows the chain; wait for the collector, or run sr-gc."),
        ["TASK_CANCELLED"] = new("It was cancelled.", "Start it again when you want it.", IsUntouched: false),
    };

    public static string Of(XeException e)
    {
        if (e.ExitCode == ExitCodes.BadCommandLine)
            return $"xe: {e.Detail}";
        StringBuilder text = new();
        text.Append(CultureInfo.InvariantCulture, $"Error code: {e.Code}\n");
        if (e.Parameters.Count > 0)
            text.Append(CultureInfo.InvariantCulture, $"Error parameters: {string.Join(", ", e.Parameters)}\n");
        return text.Append(SentenceOf(e)).ToString();
    }

    public static string SentenceOf(XeException e)
    {
        if (e.ExitCode is ExitCodes.BadCommandLine or ExitCodes.Interrupted)
            return e.Detail;
        if (e.Code is "UNTRUSTED_CERTIFICATE")
            return $"{e.Detail}. No password was sent.";
        if (e.ExitCode == ExitCodes.Unreachable)
            return $"The pool cannot be reached: {e.Detail}. See the address, and whether its daemon runs.";
        if (e.Code is "NO_PASSWORD")
            return $"{e.Detail}. No pool was asked.";
        Explanation explanation = Known.GetValueOrDefault(e.Code) ?? Default(e.Code);
        string detail = e.Detail.Length == 0 ? "" : $" {char.ToUpperInvariant(e.Detail[0])}{e.Detail[1..]}.";
        string state = explanation.IsUntouched && e.Detail.Length == 0 ? " Nothing was changed." : "";
        return $"{Fill(explanation.Why, e.Parameters)}{detail}{state} {explanation.Next}";
    }

    private static Explanation Default(string code) => code.StartsWith("SR_BACKEND_FAILURE_", StringComparison.Ordinal)
        ? new("The SR's driver failed: {1}.", $"sr-check --explain {code["SR_BACKEND_FAILURE_".Length..]} says what the number means and what to do.", IsUntouched: false)
        : new("The pool refused or failed.", "The daemon's log says more.", IsUntouched: false);

    /// <summary>A place whose parameter was not sent is left out with its dots.</summary>
    private static string Fill(string template, IReadOnlyList<string> parameters)
    {
        for (int i = 0; i < 4; i++)
        {
            string value = i < parameters.Count && parameters[i].Length > 0 ? parameters[i].TrimEnd('.') : "(not said)";
            template = template.Replace($"{{{i}}}", value, StringComparison.Ordinal);
        }

        return template;
    }
}
