#!/usr/bin/env python3
"""A SMAPIv1 driver that keeps no data: it writes every argument it is given to log/ beside itself, and calls the toolstack back as the
field's drivers do (research/storage.md 3 and 4.1). With "callbacks" in its device_config, a scan makes every call of 4.1 and writes what
was answered to log/callbacks.json."""
import http.client
import json
import os
import socket
import sys
import xmlrpc.client

HERE = os.path.dirname(os.path.abspath(sys.argv[0]))
LOG = os.path.join(HERE, "log")
DISK = "00000000-0000-4000-8000-%012d"
EPOCH = xmlrpc.client.DateTime("19700101T00:00:00Z")
NULL = "OpaqueRef:NULL"


class Failure(Exception):
    pass


class UnixConnection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(os.environ["XAPI_UNIX_SOCKET"])


class UnixTransport(xmlrpc.client.Transport):
    def make_connection(self, host):
        return UnixConnection(host)


class Toolstack:
    """The session that the call came with, or another one."""

    def __init__(self, session):
        self.session = session
        self.server = xmlrpc.client.ServerProxy("http://_var_lib_xcp_xapi/", transport=UnixTransport(), allow_none=True)

    def raw(self, method, *args):
        answer = getattr(self.server, method)(*args)
        if answer["Status"] != "Success":
            raise Failure(answer["ErrorDescription"])
        return answer["Value"]

    def call(self, method, *args):
        return self.raw(method, self.session, *args)


class Callbacks:
    """Every call of section 4.1, in an order in which each has something to find."""

    def __init__(self, request, toolstack):
        self.x = toolstack
        self.request = request
        self.rows = []

    def do(self, method, *args, by=None):
        try:
            value = (by or self.x).call(method, *args)
            self.rows.append([method, "ok", type(value).__name__, str(value)])
            return value
        except Failure as e:
            self.rows.append([method, e.args[0][0], "", " ".join(e.args[0])])
            return None

    def all(self):
        sr, host = self.request["sr_ref"], self.request["host_ref"]
        root = Toolstack(self.x.raw("session.login_with_password", "root", "", "", "SM"))
        self.rows.append(["session.login_with_password", "ok", "str", ""])
        vdi = self.vdi(sr)
        self.sr(sr, host)
        self.host(host)
        self.others(root, sr, host, vdi)
        self.refused(sr, vdi)
        self.do("session.logout", by=root)
        return self.rows

    def vdi(self, sr):
        short = self.do("VDI.db_introduce", DISK % 101, "short", "", sr, "user", False, False, {}, DISK % 101, {}, {"k": "v"})
        vdi = self.do(
            "VDI.db_introduce", DISK % 102, "label", "text", sr, "user", False, False, {}, DISK % 102, {}, {"vhd-parent": "p"}, True,
            "4294967296", "4096", NULL, False, EPOCH, NULL, False)
        for name in ["get_record", "get_uuid", "get_location", "get_SR", "get_type", "get_sm_config", "get_other_config", "get_name_label",
                     "get_name_description", "get_is_a_snapshot", "get_snapshot_of", "get_snapshot_time", "get_managed", "get_read_only",
                     "get_virtual_size", "get_metadata_of_pool", "get_on_boot", "get_allow_caching"]:
            self.do("VDI." + name, vdi)
        self.do("VDI.get_by_uuid", DISK % 102)
        self.do("VDI.get_all_records")
        self.do("VDI.get_all_records_where", 'field "SR" = "%s"' % sr)
        for name, value in [("managed", False), ("read_only", True), ("virtual_size", "8589934592"), ("physical_utilisation", "8192"),
                            ("sm_config", {"vhd-parent": "q"}), ("is_a_snapshot", True), ("snapshot_of", short),
                            ("snapshot_time", xmlrpc.client.DateTime("20250319T04:16:24Z")), ("metadata_of_pool", ""),
                            ("cbt_enabled", True), ("missing", False), ("name_label", "new"), ("name_description", "new")]:
            self.do("VDI.set_" + name, vdi, value)
        self.maps("VDI", vdi, ["sm_config", "other_config"])
        self.do("VDI.db_forget", short)
        return vdi

    def maps(self, cls, ref, fields):
        for field in fields:
            self.do("%s.add_to_%s" % (cls, field), ref, "activating", "True")
            self.do("%s.add_to_%s" % (cls, field), ref, "activating", "True")
            self.do("%s.remove_from_%s" % (cls, field), ref, "activating")
            self.do("%s.remove_from_%s" % (cls, field), ref, "activating")

    def sr(self, sr, host):
        self.do("SR.get_by_uuid", self.request["sr_uuid"])
        for name in ["get_record", "get_type", "get_uuid", "get_VDIs", "get_PBDs", "get_shared", "get_name_label", "get_name_description",
                     "get_sm_config", "get_other_config", "get_virtual_allocation"]:
            self.do("SR." + name, sr)
        self.do("SR.get_all_records")
        self.do("SR.get_all_records_where", 'field "type" = "golden"')
        for name in ["virtual_allocation", "physical_size", "physical_utilisation"]:
            self.do("SR.set_" + name, sr, "1099511627776")
        self.do("SR.set_sm_config", sr, {"a": "b"})
        self.maps("SR", sr, ["sm_config", "other_config"])
        self.do("PBD.get_all_records")
        pbds = self.do("PBD.get_all_records_where", 'field "SR" = "%s" andfield "host" = "%s"' % (sr, host))
        pbd = list(pbds)[0]
        config = self.do("PBD.get_device_config", pbd)
        self.do("PBD.set_device_config", pbd, config)
        self.do("PBD.get_other_config", pbd)
        self.maps("PBD", pbd, ["other_config"])

    def host(self, host):
        self.maps("host", host, ["other_config"])
        uuid = self.do("host.get_record", host)["uuid"]
        self.do("host.get_by_uuid", uuid)
        self.do("host.get_all_records")
        self.do("host.get_other_config", host)
        self.do("host_metrics.get_record", self.do("host.get_metrics", host))
        control = self.do("VM.get_all_records_where", 'field "is_control_domain" = "true"')
        self.do("VM.get_by_uuid", list(control.values())[0]["uuid"])
        self.do("VM.get_record", list(control)[0])
        self.do("VBD.get_all_records")
        self.do("VBD.get_all_records_where", 'field "VDI" = "%s"' % NULL)
        self.do("PUSB.get_all_records")
        self.do("pool.get_all")
        pools = self.do("pool.get_all_records")
        self.do("pool.get_master", list(pools)[0])
        self.do("SM.get_driver_filename", list(self.do("SM.get_all_records_where", 'field "type" = "golden"'))[0])

    def others(self, root, sr, host, vdi):
        args = {"sr_uuid": self.request["sr_uuid"], "vdi_uuid": DISK % 102, "failfast": "False"}
        self.do("host.call_plugin", host, "tapdisk-pause", "pause", args)
        self.do("host.call_plugin", host, "on-slave", "is_open", {"vdiUuid": DISK % 102, "srRef": sr})
        task = self.do("task.create", "Garbage Collection", "of an SR")
        self.do("task.set_progress", task, 0.5)
        self.do("task.set_other_config", task, {"applies_to": sr})
        self.do("task.get_status", task)
        self.do("task.set_status", task, "success")
        self.do("task.destroy", task)
        cancelled = self.do("task.create", "another", "")
        self.do("task.cancel", cancelled)
        message = self.do("message.create", "POST_ATTACH_SCAN_FAILED", "3", "SR", self.request["sr_uuid"], "body")
        self.do("message.get_record", message)
        self.do("message.destroy", message)
        secret = self.do("secret.create", {"value": "s3cr3t"})
        uuid = self.do("secret.get_uuid", secret)
        self.do("secret.get_by_uuid", uuid)
        self.do("secret.get_value", secret)
        # The collector works in a session of its own, while drivers run; this one calls the driver again.
        inner = self.do("VDI.snapshot", vdi, {"type": "internal"}, by=root)
        self.do("VDI.forget", inner, by=root)
        self.do("Async.SR.update", sr, by=root)

    def refused(self, sr, vdi):
        for method, args in [("VDI.get_by_uuid", [DISK % 999]), ("VDI.get_record", ["OpaqueRef:gone"]), ("VDI.get_record", []), ("SR.get_sm_config", [None]),
                             ("VDI.no_such_call", [vdi]), ("VM.destroy", ["OpaqueRef:gone"]), ("session.get_record", [self.x.session]),
                             ("secret.get_all_records", []), ("SR.set_physical_size", [NULL, "1"]),
                             ("host.call_plugin", [self.request["host_ref"], "no-such-plugin", "f", {}]),
                             ("host.call_plugin", [self.request["host_ref"], "on-slave", "fails", {}])]:
            self.do(method, *args)


def introduce(toolstack, request, number, label="", snapshot_of=NULL, read_only=False, size="8388608"):
    uuid = DISK % number
    toolstack.call("VDI.db_introduce", uuid, label, "", request["sr_ref"], "user", False, read_only, {}, uuid, {},
                   request.get("vdi_sm_config", {}), True, size, "4096", "", False, EPOCH, snapshot_of, False)
    return {"uuid": uuid, "location": uuid}


def next_disk(toolstack, sr):
    used = toolstack.call("VDI.get_all_records_where", 'field "SR" = "%s"' % sr)
    return 1 + max([0] + [int(r["location"][-12:]) for r in used.values() if int(r["location"][-12:]) < 100])


def static_call(command, request):
    def value(v):
        if isinstance(v, str):
            return "<value>%s</value>" % v
        return "<value><struct>%s</struct></value>" % "".join(
            "<member><name>%s</name>%s</member>" % (k, value(x)) for k, x in v.items())
    struct = value({"command": command, "device_config": request["device_config"], "sr_uuid": request["sr_uuid"],
                    "vdi_uuid": request["vdi_uuid"]})
    return "<methodCall><methodName>%s</methodName><params><param>%s</param></params></methodCall>" % (command, struct)


def run(command, request):
    if command == "sr_get_driver_info":
        return INFO
    if command == "vdi_attach_from_config":
        return ATTACHED
    if command == "vdi_detach_from_config":
        return None
    x = Toolstack(request["session_ref"])
    if command == "sr_scan" and "callbacks" in request["device_config"]:
        with open(os.path.join(LOG, "callbacks.json"), "w") as f:
            json.dump(Callbacks(request, x).all(), f)
    if command == "sr_probe":
        return "<?xml version=\"1.0\" ?><SRlist/>"
    if command == "sr_content_type":
        return "user"
    if command == "vdi_create":
        return introduce(x, request, next_disk(x, request["sr_ref"]), request["args"][1], size=request["args"][0])
    if command == "vdi_introduce":
        return introduce(x, request, int(request["vdi_location"][-12:]))
    if command in ("vdi_snapshot", "vdi_clone"):
        return introduce(x, request, next_disk(x, request["sr_ref"]), read_only=command == "vdi_snapshot")
    if command == "vdi_resize":
        x.call("VDI.set_virtual_size", request["vdi_ref"], request["args"][0])
        return {"uuid": request["vdi_uuid"], "location": request["vdi_location"]}
    if command == "vdi_attach":
        return ATTACHED
    if command == "vdi_generate_config":
        return static_call("vdi_attach_from_config", request)
    if command == "vdi_list_changed_blocks":
        return "gAAB"
    if command == "vdi_delete":
        x.call("VDI.db_forget", request["vdi_ref"])
    return None


ATTACHED = {"params_nbd": "nbd:unix:/run/golden:exportname=1", "o_direct": True, "o_direct_reason": "SR_NOT_SUPPORTED",
            "xenstore_data": {"storage-type": "golden"}}
INFO = {"name": "golden", "description": "keeps no data", "vendor": "Storage", "copyright": "none", "driver_version": "1.0",
        "required_api_version": "1.1", "configuration": [{"key": "location", "description": "anything"}],
        "supported_image_formats": ["vhd"],
        "capabilities": ["SR_PROBE", "SR_UPDATE", "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE", "VDI_DEACTIVATE",
                         "VDI_CLONE", "VDI_SNAPSHOT", "VDI_RESIZE", "VDI_INTRODUCE", "VDI_UPDATE", "VDI_GENERATE_CONFIG",
                         "VDI_RESET_ON_BOOT/2", "VDI_CONFIG_CBT", "VDI_MIRROR", "VDI_REVERT", "ATOMIC_PAUSE"]}


def main():
    params, command = xmlrpc.client.loads(sys.argv[1])
    os.makedirs(LOG, exist_ok=True)
    with open(os.path.join(LOG, "%06d-%s.xml" % (len(os.listdir(LOG)), command)), "w") as f:
        f.write(sys.argv[1])
    try:
        print(xmlrpc.client.dumps((run(command, params[0]),), "", True, allow_none=True))
    except Failure as e:
        print(xmlrpc.client.dumps(xmlrpc.client.Fault(154, " ".join(e.args[0]))))


main()
