namespace Conformance.SrCheckTests;

/// <summary>The SMAPIv1 template, broken in one thing each.</summary>
public static class BrokenV1
{
    private const string Print = "print(xmlrpc.client.dumps(answer, methodresponse=True, allow_none=True))";
    private const string Introduced = "    introduce(call, key, disks(path)[key], *texts)\n";

    public static readonly BrokenPlugin[] All =
    [
        new("fault-with-exit-1", "wire.refusal.vdi-destroy", (Print, Print + "\nsys.exit(isinstance(answer, xmlrpc.client.Fault))")),
        new("two-responses", "query.answers", (Print, Print + "\n" + Print)),
        new("text-in-the-fault-code", "wire.refusal.vdi-destroy", ("allow_none=True))",
            "allow_none=True).replace(\"<int>144</int>\", \"<string>VDIMissing</string>\"))")),
        new("half-a-response", "query.answers", ("allow_none=True))", "allow_none=True)[:60])")),
        new("text-for-nil", "wire.answer.sr-detach", ("\"sr_detach\": lambda call: None", "\"sr_detach\": lambda call: \"done\"")),
        new("no-params_nbd", "wire.answer.vdi-attach", ("\"params_nbd\": \"\", ", "")),
        new("tells-nobody", "wire.answer.vdi-create", (Introduced, "")),
        new("answers-another-uuid", "wire.answer.vdi-create", ("return {\"uuid\": key, \"location\": key}",
            "return {\"uuid\": str(uuid.uuid4()), \"location\": key}")),
        new("asks-for-a-session-too-early", "query.no-session", ("    \"sr_get_driver_info\": lambda call: {",
            "    \"sr_get_driver_info\": lambda call: xapi({\"session_ref\": \"OpaqueRef:session\"}, \"pool.get_all\") and {")),
        new("keeps-the-record", "vdi.destroy.forgets", ("    xapi(call, \"VDI.db_forget\", call[\"vdi_ref\"])\n", "")),
        new("scan-introduces-nothing", "sr.database.reintroduces",
            ("    for key, status in there.items():\n        introduce(call, key, status)\n", "")),
        new("scan-forgets-nothing", "sr.database.forgets", ("            xapi(call, \"VDI.db_forget\", ref)\n            continue",
            "            continue")),
        new("scan-tells-no-size", "sr.database.numbers", ("        introduce(call, key, status)\n    sr_update(call)",
            "        introduce(call, key, status)")),
        new("wrong-number", "errors.in-use.number", ("Refusal(24,", "Refusal(91,")),
        new("unforeseen", "features.unclaimed.unknown-command", ("Refusal(38,", "Refusal(1200,")),
        new("crashes-on-bad-input", "arguments.missing.size", ("except Exception as e:", "except Refusal as e:")),
        new("does-not-mind-a-refused-callback", "faults.callback-refuses.create",
            ("        raise Refusal(154, f\"{method}: {answer['ErrorDescription']}\")", "        return {}")),
        new("attach-wipes", "sr.detach.keeps-disks", ("\"sr_attach\": sr_scan",
            "\"sr_attach\": lambda call: [os.unlink(f\"{folder(call)}/{k}.img\") for k in disks(folder(call))] and None or sr_scan(call)")),
        new("activate-needs-luck", "datapath.step.attached-rw.activate",
            ("    \"vdi_activate\": lambda call: open(image(call)[:-4] + \".active\", \"w\").close()",
                "    \"vdi_activate\": lambda call: os.truncate(image(call), 512)")),
    ];
}
