#!/usr/bin/python3
"""@NAME@: a SMAPIv3 plugin that sr-check new wrote. An SR is a folder (configuration "path"), a volume a sparse file KEY.img in it with
KEY.json beside it, KEY.active while it is in use. Each script is a link to this file: the name it is called by says what to do; one line
of JSON on stdin, the bare result on stdout; an error is {"code", "params"} with exit 1. stderr is free for logging."""
import errno, fcntl, json, os, re, shutil, subprocess, sys, uuid

TYPE = "@NAME@"
FEATURES = ["VDI_CREATE", "VDI_DESTROY", "VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE", "VDI_DEACTIVATE", "THIN_PROVISIONING"]

class Refusal(Exception):
    """A no, and nothing was changed: a number of the field's (sr-check --explain NUMBER) or a name, and why."""

def text(call, name):
    if not isinstance(call.get(name), str):
        raise Refusal(143, f"{name} must be a string")
    return call[name]

def length_of(call, name):
    if type(call.get(name)) is not int or not 0 < call[name] <= 2040 << 30:
        raise Refusal(79, f"{name} must be 1 to {2040 << 30} bytes, not {call.get(name)}")
    return (call[name] + 511) // 512 * 512

def configured(call):
    if not isinstance(call.get("configuration"), dict) or not os.path.isabs(text(call["configuration"], "path")):
        raise Refusal(94, "configuration needs path, the folder, absolute")
    return call["configuration"]["path"]

def folder(call):
    sr = text(call, "sr")
    if "\0" in sr or not os.path.isabs(sr) or not os.path.isfile(f"{sr}/.sr.json"):
        raise Refusal(47, f"{sr!r} is not an SR")
    return sr

def locked(sr):  # Until this process ends, however it ends. What a dead holder left half-made goes.
    fcntl.flock(os.open(sr, os.O_RDONLY), fcntl.LOCK_EX)
    for name in os.listdir(sr):
        if name.endswith(".new") or (name.endswith(".img") and not os.path.exists(f"{sr}/{name[:-4]}.json")):
            os.unlink(f"{sr}/{name}")

def image(sr, key):
    if not re.fullmatch("[0-9a-f-]{36}", key) or not os.path.isfile(f"{sr}/{key}.json"):
        raise Refusal("Volume_does_not_exist", key)
    return f"{sr}/{key}.img"

def save(path, record):
    with open(path + ".new", "w") as file:
        json.dump(record, file)
    os.rename(path + ".new", path)

def volume(sr, key):
    status = os.stat(image(sr, key))
    return {"key": key, "uuid": key, **json.load(open(f"{sr}/{key}.json")), "read_write": True, "sharable": False,
            "virtual_size": status.st_size, "physical_utilisation": status.st_blocks * 512, "uri": [f"{TYPE}://{sr}/{key}"]}

def sr_create(call):
    path = configured(call)
    if os.path.exists(f"{path}/.sr.json"):
        raise Refusal(42, f"{path} is an SR already")
    os.makedirs(path, exist_ok=True)
    save(f"{path}/.sr.json", {"uuid": text(call, "uuid"), "name": text(call, "name"), "description": text(call, "description")})
    return call["configuration"]

def sr_destroy(call):
    locked(folder(call))
    if any(name.endswith(".json") and name != ".sr.json" for name in os.listdir(call["sr"])):
        raise Refusal(39, f"{call['sr']} holds volumes")
    shutil.rmtree(call["sr"])

def sr_stat(call):
    space = os.statvfs(folder(call))
    return {"sr": call["sr"], **json.load(open(f"{call['sr']}/.sr.json")), "total_space": space.f_blocks * space.f_frsize,
            "free_space": space.f_bavail * space.f_frsize, "datasources": [], "clustered": False, "health": ["Healthy", ""]}

def make(sr, kept, *fill):
    key = str(uuid.uuid4())
    subprocess.run([*fill, f"{sr}/{key}.img"], check=True)
    save(f"{sr}/{key}.json", kept)  # Now it exists.
    return volume(sr, key)

def create(sr, call):
    kept = {"name": text(call, "name"), "description": text(call, "description"), "keys": {}}
    return make(sr, kept, "truncate", "-s", str(length_of(call, "size")))

def duplicate(sr, call):
    source = image(sr, text(call, "key"))
    return make(sr, json.load(open(source[:-4] + ".json")), "cp", "--sparse=always", source)

def destroy(sr, call):
    path = image(sr, text(call, "key"))
    if os.path.exists(path[:-4] + ".active"):
        raise Refusal(24, f"{call['key']} is in use")
    os.unlink(path[:-4] + ".json")
    os.unlink(path)

def resize(sr, call):
    if length_of(call, "new_size") < os.path.getsize(image(sr, text(call, "key"))):
        raise Refusal(79, "a volume does not shrink")
    os.truncate(image(sr, call["key"]), length_of(call, "new_size"))

def set_key(sr, call):
    path = image(sr, text(call, "key"))[:-4] + ".json"
    kept = json.load(open(path))
    kept["keys"][text(call, "k")] = text(call, "v")
    save(path, kept)

VOLUME = {"Volume.create": create, "Volume.destroy": destroy, "Volume.snapshot": duplicate, "Volume.clone": duplicate,
          "Volume.resize": resize, "Volume.set": set_key}

def datapath(script, call):
    match = re.fullmatch(f"{TYPE}://(/.*)/([0-9a-f-]{{36}})", text(call, "uri"))
    if not match:
        raise Refusal(143, f"{call['uri']!r} is not a URI of this plugin")
    sr, key = match.groups()
    active = f"{sr}/{key}.active"
    if script in ("Datapath.deactivate", "Datapath.detach"):
        return os.unlink(active) if os.path.exists(active) else None
    path = image(folder({"sr": sr}), key)
    if script == "Datapath.activate":
        return open(active, "w").close()
    return {"implementations": [["File", {"path": path}]]}

OTHER = {
    "Plugin.Query": lambda call: {
        "plugin": TYPE, "name": "Sparse files in a folder", "description": "", "vendor": "", "copyright": "", "version": "1.0",
        "required_api_version": "5.0", "features": FEATURES, "required_cluster_stack": [], "configuration": {"path": "absolute"}},
    "SR.create": sr_create, "SR.destroy": sr_destroy, "SR.stat": sr_stat, "SR.detach": lambda call: None,
    "SR.attach": lambda call: folder({"sr": configured(call)}),
    "SR.ls": lambda call: [volume(folder(call), n[:-5]) for n in sorted(os.listdir(folder(call))) if n.endswith(".json") and n[0] != "."],
    "Volume.stat": lambda call: volume(folder(call), text(call, "key")),
}

def run(script, call):
    if script in VOLUME:
        locked(folder(call))
        return VOLUME[script](call["sr"], call)
    return datapath(script, call) if script.startswith("Datapath.") else OTHER[script](call)

if sys.argv[1:] != ["--json"]:
    sys.exit("usage: one line of JSON on stdin, and --json")
try:
    parameters = json.loads(sys.stdin.readline())
    if not isinstance(parameters, dict):
        raise Refusal(143, "a dict is expected")
    print(json.dumps(run(os.path.basename(sys.argv[0]), parameters)))
except Exception as e:  # The boundary: the toolstack must get an answer.
    number = 44 if getattr(e, "errno", 0) == errno.ENOSPC else 143 if isinstance(e, ValueError) else 202
    code, why = e.args if isinstance(e, Refusal) else (number, repr(e))
    print(json.dumps({"code": code if isinstance(code, str) else f"SR_BACKEND_FAILURE_{code}", "params": [str(why)]}))
    sys.exit(1)
