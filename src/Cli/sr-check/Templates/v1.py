#!/usr/bin/python3
"""@NAME@: a SMAPIv1 driver that sr-check new wrote. An SR is a folder (device_config "location"), a disk a sparse file UUID.img in it,
UUID.active while it is in use; names live in the toolstack's database, told by call-backs on XAPI_UNIX_SOCKET. The whole call is the
one argument, an XML-RPC methodCall; the answer is one methodResponse on stdout; a fault is an answer too, so the exit code is 0."""
import errno, fcntl, http.client, os, re, shutil, socket, subprocess, sys, uuid, xmlrpc.client

SIZES = range(1, (2040 << 30) + 1)
CAPABILITIES = ["SR_PROBE", "SR_UPDATE", "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE", "VDI_DEACTIVATE",
                "VDI_SNAPSHOT", "VDI_CLONE", "VDI_RESIZE", "THIN_PROVISIONING"]

class Refusal(Exception):
    """A no, and nothing was changed: a number of the field's (sr-check --explain NUMBER), and why."""

class Toolstack(xmlrpc.client.Transport):
    def make_connection(self, host):
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(os.environ.get("XAPI_UNIX_SOCKET", "/var/lib/xcp/xapi"))
        return connection

def xapi(call, method, *arguments):
    proxy = xmlrpc.client.ServerProxy("http://localhost/", transport=Toolstack(), allow_none=True)
    answer = getattr(proxy, method)(call["session_ref"], *arguments)
    if answer["Status"] != "Success":
        raise Refusal(154, f"{method}: {answer['ErrorDescription']}")
    return answer["Value"]

def folder(call, exists=True):
    path = call["device_config"].get("location", "")
    if not os.path.isabs(path):
        raise Refusal(94, "device_config needs location, the folder, absolute")
    if exists and not os.path.isfile(f"{path}/.sr"):
        raise Refusal(47, f"{path} is not an SR")
    return path

def locked(call):  # Until this process ends, however it ends.
    path = folder(call)
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)
    for name in (n for n in os.listdir(path) if n.endswith(".new")):
        os.unlink(f"{path}/{name}")
    return path

def image(call):
    location = call["vdi_location"]
    if not re.fullmatch("[0-9a-f-]{36}", location) or not os.path.isfile(f"{folder(call)}/{location}.img"):
        raise Refusal(144, f"there is no disk {location}")
    return f"{folder(call)}/{location}.img"

def length_of(call):
    if not call["args"][0].isdecimal() or int(call["args"][0]) not in SIZES:
        raise Refusal(79, f"{call['args'][0]} is no size of 1 to {SIZES[-1]} bytes")
    return (int(call["args"][0]) + 511) // 512 * 512

def disks(path):
    return {n[:-4]: os.stat(f"{path}/{n}") for n in os.listdir(path) if n.endswith(".img")}

def introduce(call, key, status, label="", description=""):
    xapi(call, "VDI.db_introduce", key, label, description, call["sr_ref"], "user", False, False, {}, key, {}, {}, True,
         str(status.st_size), str(status.st_blocks * 512), "", False, xmlrpc.client.DateTime("19700101T00:00:00Z"), "OpaqueRef:NULL", False)

def make(call, fill, *texts):
    path, key = locked(call), str(uuid.uuid4())
    subprocess.run([*fill, f"{path}/{key}.new"], check=True)
    os.rename(f"{path}/{key}.new", f"{path}/{key}.img")
    introduce(call, key, disks(path)[key], *texts)
    return {"uuid": key, "location": key}

def sr_create(call):
    path = folder(call, exists=False)
    if os.path.exists(f"{path}/.sr"):
        raise Refusal(42, f"{path} is an SR already")
    os.makedirs(path, exist_ok=True)
    with open(f"{path}/.sr", "w") as file:
        file.write(call["sr_uuid"])

def sr_delete(call):
    path = locked(call)
    if disks(path):
        raise Refusal(39, f"{path} holds disks")
    shutil.rmtree(path)

def sr_probe(call):
    path = folder(call, exists=False) + "/.sr"
    found = f"<SR><UUID>{open(path).read()}</UUID></SR>" if os.path.exists(path) else ""
    return f"<SRlist>{found}</SRlist>"

def sr_update(call):
    there, space = disks(folder(call)), os.statvfs(folder(call))
    xapi(call, "SR.set_virtual_allocation", call["sr_ref"], str(sum(status.st_size for status in there.values())))
    xapi(call, "SR.set_physical_size", call["sr_ref"], str(space.f_blocks * space.f_frsize))
    xapi(call, "SR.set_physical_utilisation", call["sr_ref"], str((space.f_blocks - space.f_bavail) * space.f_frsize))

def sr_scan(call):
    there = disks(locked(call))
    for ref, kept in xapi(call, "VDI.get_all_records_where", f'field "SR" = "{call["sr_ref"]}"').items():
        status = there.pop(kept["location"], None)
        if not status:
            xapi(call, "VDI.db_forget", ref)
            continue
        xapi(call, "VDI.set_virtual_size", ref, str(status.st_size))
        xapi(call, "VDI.set_physical_utilisation", ref, str(status.st_blocks * 512))
    for key, status in there.items():
        introduce(call, key, status)
    sr_update(call)

def vdi_delete(call):
    locked(call)
    if os.path.exists(image(call)[:-4] + ".active"):
        raise Refusal(24, f"{call['vdi_location']} is in use")
    os.unlink(image(call))
    xapi(call, "VDI.db_forget", call["vdi_ref"])

def vdi_resize(call):
    locked(call)
    if length_of(call) < os.path.getsize(image(call)):
        raise Refusal(79, "a disk does not shrink")
    os.truncate(image(call), length_of(call))
    xapi(call, "VDI.set_virtual_size", call["vdi_ref"], str(length_of(call)))
    return {"uuid": call["vdi_uuid"], "location": call["vdi_location"]}

def deactivate(call):
    if os.path.exists(active := f"{folder(call)}/{os.path.basename(call['vdi_location'])}.active"):
        os.unlink(active)

COMMANDS = {
    "sr_get_driver_info": lambda call: {
        "name": "Sparse files in a folder", "description": "", "vendor": "", "copyright": "", "driver_version": "1.0",
        "required_api_version": "1.0", "capabilities": CAPABILITIES,
        "configuration": [{"key": "location", "description": "the folder, an absolute path"}]},
    "sr_create": sr_create, "sr_delete": sr_delete, "sr_attach": sr_scan, "sr_scan": sr_scan, "sr_update": sr_update,
    "sr_probe": sr_probe, "sr_detach": lambda call: None, "vdi_delete": vdi_delete, "vdi_resize": vdi_resize,
    "vdi_create": lambda call: make(call, ["truncate", "-s", str(length_of(call))], *call["args"][1:3]),
    "vdi_snapshot": lambda call: make(call, ["cp", "--sparse=always", image(call)]),
    "vdi_clone": lambda call: make(call, ["cp", "--sparse=always", image(call)]),
    "vdi_attach": lambda call: {"params": image(call), "params_nbd": "", "o_direct": True, "o_direct_reason": "", "xenstore_data": {}},
    "vdi_activate": lambda call: open(image(call)[:-4] + ".active", "w").close(), "vdi_deactivate": deactivate, "vdi_detach": deactivate,
}

if len(sys.argv) != 2:
    sys.exit("usage: one argument, an XML-RPC methodCall")
try:
    (parameters,), _ = xmlrpc.client.loads(sys.argv[1])
    if parameters["command"] not in COMMANDS:
        raise Refusal(38, f"{parameters['command']} is not implemented")
    answer = (COMMANDS[parameters["command"]](parameters),)
except Exception as e:  # The boundary: the toolstack must get an answer.
    number = 44 if getattr(e, "errno", 0) == errno.ENOSPC else 202 if isinstance(e, (OSError, subprocess.SubprocessError)) else 143
    answer = xmlrpc.client.Fault(*(e.args if isinstance(e, Refusal) else (number, repr(e))))
print(xmlrpc.client.dumps(answer, methodresponse=True, allow_none=True))
