namespace Conformance.SrCheckTests;

/// <summary>The SMAPIv3 template, broken in one thing each. Numbers in comments are those of the bad-input plan's plugin output.</summary>
public static class BrokenV3
{
    private const string Print = "    print(json.dumps(run(os.path.basename(sys.argv[0]), parameters)))";
    private const string PrintStart = "    print(json.dumps(run(";
    private const string PrintEnd = "parameters)))";
    private const string SrLs = "n in sorted(os.listdir(folder(call)))";
    private const string Copy = "\"cp\", \"--sparse=always\", source";
    private const string Truncate = "\"truncate\", \"-s\", str(length_of(call, \"size\"))";
    private const string Path = "{\"path\": path}";
    private const string InUse = "    if os.path.exists(path[:-4] + \".active\"):";
    private const UnixFileMode ReadOnly = UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.GroupRead;
    private const UnixFileMode Everybody =
        UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute | UnixFileMode.OtherWrite;

    public static readonly BrokenPlugin[] All =
    [
        // 146 to 154: the form of the answer.
        new("empty-output", "wire.answer.vdi-create", (PrintStart,
            "    print(\"\" if sys.argv[0].endswith(\"Volume.create\") else json.dumps(run(")),
        new("exit-1-with-a-result", "wire.answer.sr-scan", (PrintEnd, PrintEnd + "\n    sys.exit(sys.argv[0].endswith(\"SR.ls\"))")),
        new("half-an-answer", "wire.answer.sr-stat", (PrintEnd, "parameters))[:40 if sys.argv[0].endswith(\"SR.stat\") else None])")),
        new("two-answers", "wire.answer.vdi-stat", (PrintEnd, "parameters)) * (1 + sys.argv[0].endswith(\"Volume.stat\")))")),
        new("logs-to-stdout", "wire.answer.vdi-create", ("    kept = {\"name\"", "    print(\"creating a volume\")\n    kept = {\"name\"")),
        new("endless-output", "wire.answer.sr-scan", (Print,
            "    while sys.argv[0].endswith(\"SR.ls\"):\n        print(\"x\" * 1048576)\n" + Print)),
        new("hangs", "wire.answer.sr-stat", (Print, "    import time\n    time.sleep(1000 * sys.argv[0].endswith(\"SR.stat\"))\n" + Print)),
        new("child-holds-the-pipe", "wire.answer.sr-stat", (Print,
            "    if sys.argv[0].endswith(\"SR.stat\"):\n        subprocess.Popen([\"sleep\", \"1000\"])\n" + Print)),
        new("ignores-sigterm", "wire.answer.vdi-destroy", ("    os.unlink(path)\n",
            "    import signal, time\n    signal.signal(15, signal.SIG_IGN)\n    time.sleep(1000)\n")),
        new("killed-by-signal", "wire.answer.vdi-destroy", ("    os.unlink(path)\n", "    os.kill(os.getpid(), 9)\n")),
        new("text-for-a-number", "wire.refusal.vdi-create", ("f\"SR_BACKEND_FAILURE_{code}\"", "f\"SR_BACKEND_FAILURE_{why}\"")),
        new("unknown-number", "errors.create-negative.known", ("Refusal(79, f\"{name} must", "Refusal(6666, f\"{name} must")),
        new("error-with-exit-0", "wire.refusal.vdi-destroy", ("    sys.exit(1)", "    sys.exit(0)")),
        new("size-as-text", "wire.answer.vdi-create", ("\"virtual_size\": status.st_size", "\"virtual_size\": str(status.st_size)")),

        // 155 to 159: what the answer says.
        new("attach-names-nothing", "datapath.address.openable", (Path, "{\"path\": path + \".nowhere\"}")),
        new("attach-names-a-folder", "datapath.address.no-folder", (Path, "{\"path\": sr}")),
        new("attach-names-a-command", "datapath.address.plain", (Path, "{\"path\": path + \"$(reboot)\"}")),
        new("one-address-for-all", "datapath.address.own", (Path, "{\"path\": sr + \"/disk.img\"}")),
        new("rounds-down", "vdi.create.rounds-up", ("(call[name] + 511) // 512", "call[name] // 512")),
        new("a-hundred-times-as-large", "vdi.create.not-far-up", (Truncate, "\"truncate\", \"-s\", str(100 * length_of(call, \"size\"))")),
        new("says-another-size", "vdi.create.device-size", ("\"virtual_size\": status.st_size", "\"virtual_size\": status.st_size + 512")),
        new("lists-twice", "sr.scan.no-duplicates", (SrLs, "n in 2 * sorted(os.listdir(folder(call)))")),
        new("tool-missing-is-empty", "sr.scan.tool-missing", (SrLs,
            "n in sorted(os.listdir(folder(call)) if shutil.which(\"du\") else [])")),
        new("store-gone-is-empty", "sr.scan.store-gone", (SrLs,
            "n in sorted(os.listdir(call[\"sr\"]) if os.path.isdir(call[\"sr\"]) else [])")),
        new("one-uuid-for-all", "sr.scan.no-duplicates", ("\"uuid\": key, **json",
            "\"uuid\": \"11111111-2222-3333-4444-555555555555\", **json")),
        new("claims-what-it-lacks", "features.claimed.resize", ("\"Volume.resize\": resize, ", "")),
        new("unknown-feature", "query.features-known", ("\"THIN_PROVISIONING\"]", "\"VDI_TELEPORT\"]")),
        new("other-api-version", "query.api-version", ("\"required_api_version\": \"5.0\"", "\"required_api_version\": \"4.0\"")),
        new("free-beyond-total", "sr.stat.sane", ("space.f_bavail * space.f_frsize", "2 * space.f_blocks * space.f_frsize")),

        // 160 to 162: the program.
        new("import-error", "query.answers", ("import errno, fcntl", "import no_such_module, errno, fcntl")),
        new("not-executable", "plugin.executable") { Mode = ReadOnly },
        new("world-writable", "plugin.not-world-writable") { Mode = Everybody },
        new("no-lock", "concurrency.creates", ("    fcntl.flock(", "    (lambda *_: None)("), ("    save(f\"{sr}/{key}.json\", kept)",
            "    import time\n    time.sleep(0.3)\n    save(f\"{sr}/{key}.json\", kept)")),

        // Life.
        new("creates-over-an-sr", "sr.create.twice", ("    if os.path.exists(f\"{path}/.sr.json\"):", "    if False:")),
        new("attaches-anything", "sr.attach.unknown", ("lambda call: folder({\"sr\": configured(call)})", "lambda call: configured(call)")),
        new("destroys-a-full-sr", "sr.destroy.not-empty", ("    if any(name", "    if False and any(name")),
        new("destroys-what-is-used", "vdi.destroy.in-use", (InUse, "    if False:")),
        new("destroys-all", "vdi.destroy.one-only", ("    os.unlink(path)\n",
            "    [os.unlink(f\"{sr}/{n}\") for n in os.listdir(sr) if n.endswith(\".json\") and n[0] != \".\"]\n")),
        new("leaves-the-data", "vdi.destroy.frees", ("    os.unlink(path)\n", "")),
        new("cuts-names", "vdi.name.long", ("{\"name\": text(call, \"name\"), \"description\": text(call, \"description\"), \"keys\"",
            "{\"name\": text(call, \"name\")[:64], \"description\": text(call, \"description\"), \"keys\"")),
        new("runs-names", "vdi.name.shell", ("    kept = {\"name\"", "    os.system(f\"echo {call['name']} >&2\")\n    kept = {\"name\"")),
        new("forgets-keys", "vdi.set.keeps", ("] = text(call, \"v\")\n    save(path, kept)", "] = text(call, \"v\")")),
        new("shrinks", "vdi.resize.never-shrinks", ("        raise Refusal(79, \"a volume does not shrink\")", "        pass")),
        new("resize-wipes", "vdi.resize.keeps-data", ("    os.truncate(image(sr, call[\"key\"])",
            "    os.truncate(image(sr, call[\"key\"]), 0)\n    os.truncate(image(sr, call[\"key\"])")),
        new("copy-is-its-source", "vdi.snapshot.new-key", ("    return make(sr, json.load(open(source",
            "    return volume(sr, call[\"key\"]) or make(sr, json.load(open(source")),

        // Data, repetition, leaks, crash.
        new("copy-shares-bytes", "data.snapshot.source-written-later", (Copy, "\"cp\", \"-l\", source")),
        new("copy-is-empty", "data.clone.identical", (Copy, "\"truncate\", \"-r\", source")),
        new("thick", "sparse.empty-is-small", (Truncate, "\"fallocate\", \"-l\", str(length_of(call, \"size\"))")),
        new("activate-once", "idempotency.activate-twice", ("open(active, \"w\")", "open(active, \"x\")")),
        new("detach-once", "idempotency.detach-twice", ("return os.unlink(active) if os.path.exists(active) else None",
            "return os.unlink(active)")),
        new("destroy-again-is-busy", "idempotency.destroy-twice", ("Refusal(\"Volume_does_not_exist\", key)", "Refusal(24, key)")),
        new("leaves-a-process", "leaks.processes", ("        return open(active, \"w\")",
            "        subprocess.Popen([\"sleep\", \"1000\"], stdout=2, start_new_session=True)\n        return open(active, \"w\")")),
        new("leaves-a-file", "leaks.store-files", ("    kept = {\"name\"",
            "    open(f\"{sr}/.tmp-{uuid.uuid4()}\", \"w\").close()\n    kept = {\"name\"")),
        new("tells-secrets", "errors.no-secrets", ("    if not isinstance(parameters, dict):",
            "    print(parameters, file=sys.stderr)\n    if not isinstance(parameters, dict):")),
        new("record-before-data", "crash.create.at-45", ("    subprocess.run([*fill",
            "    save(f\"{sr}/{key}.json\", kept)\n    import time\n    time.sleep(0.5)\n    subprocess.run([*fill")),
    ];
}
