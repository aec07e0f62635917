namespace StorageAccess;

/// <summary>
/// A storage call said no. <see cref="Code"/> is the XenAPI error code (SR_BACKEND_FAILURE_44, VDI_IN_USE, …) with the field's parameters;
/// <see cref="Tag"/> is the SMAPIv2 variant it travels as (research: storage.md 1.4).
/// </summary>
public sealed class StorageException : Exception
{
    public StorageException(string code, params IReadOnlyList<string> parameters)
        : this("Backend_error", code, parameters)
    {
    }

    private StorageException(string tag, string code, IReadOnlyList<string> parameters)
        : base($"{code}: {string.Join(", ", parameters.Where(static p => p.Length != 0))}")
    {
        Tag = tag;
        Code = code;
        Parameters = parameters;
    }

    public string Tag { get; }

    public string Code { get; }

    public IReadOnlyList<string> Parameters { get; }

    /// <summary>
    /// The driver died, was killed or answered garbage: what it did is unknown, and the layer repairs it before the VDI is used again.
    /// </summary>
    public bool IsOutcomeUnknown { get; private init; }

    /// <summary>The two states of an Illegal_transition.</summary>
    public (VdiState From, VdiState To)? Transition { get; private init; }

    public static StorageException NoPluginForSr(SrId sr) => new("No_storage_plugin_for_sr", "SR_NOT_ATTACHED", [sr.Value]);

    public static StorageException SrNotAttached(SrId sr) => new("Sr_not_attached", "SR_NOT_ATTACHED", [sr.Value]);

    public static StorageException VdiDoesNotExist(VdiId vdi) => new("Vdi_does_not_exist", "VDI_MISSING", [vdi.Value]);

    public static StorageException IllegalTransition(VdiState from, VdiState to, string why) =>
        new("Illegal_transition", "INTERNAL_ERROR", [$"Storage_interface.Illegal_transition({from}, {to}): {why}"])
        {
            Transition = (from, to),
        };

    public static StorageException Unimplemented(string call) => new("Unimplemented", "UNIMPLEMENTED_IN_SM_BACKEND", [call]);

    public static StorageException DoesNotExist(string kind, string id) => new("Does_not_exist", "INTERNAL_ERROR", [kind, id]);

    public static StorageException Cancelled(string task) => new("Cancelled", "TASK_CANCELLED", [task]);

    /// <param name="tag">One of the field's Migration_… variants.</param>
    public static StorageException Migration(string tag, string text) => new(tag, "INTERNAL_ERROR", [text]);

    /// <summary>Two disks that should hold the same do not.</summary>
    public static StorageException ContentIdsDoNotMatch(VdiId one, VdiId other) =>
        new("Content_ids_do_not_match", "INTERNAL_ERROR", [one.Value, other.Value]);

    public static StorageException DuplicatedKey(string key) => new("Duplicated_key", "MAP_DUPLICATE_KEY", [key]);

    public static StorageException Internal(string text) => new("Internal_error", "INTERNAL_ERROR", [text]);

    /// <summary>No answer that can be trusted.</summary>
    public static StorageException NoAnswer(string code, params IReadOnlyList<string> parameters) => new("Backend_error", code, parameters)
    {
        IsOutcomeUnknown = true,
    };

    /// <summary>The same refusal with one parameter changed; missing ones before it are empty.</summary>
    public StorageException With(int parameter, string text)
    {
        List<string> parameters = [.. Parameters];
        while (parameters.Count <= parameter)
            parameters.Add("");
        parameters[parameter] = text;
        return new StorageException(Tag, Code, parameters) { IsOutcomeUnknown = IsOutcomeUnknown, Transition = Transition };
    }

    /// <summary>Rebuilds what came over a wire.</summary>
    public static StorageException FromWire(string tag, string code, IReadOnlyList<string> parameters) => new(tag, code, parameters);
}
