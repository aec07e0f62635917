# The client program of seed 004, with Python's own xmlrpc.client. Changed: the addresses, the names, and [0] where get_by_name_label returns a list.
# usage: seed_client.py REMOTE_URL REMOTE_PASSWORD LOCAL_URL LOCAL_PASSWORD
import ssl
import sys
import time
import xmlrpc.client as xmlrpclib

remote_url, remote_password, local_url, local_password = sys.argv[1:]


def Server(url):
    # The pools' certificates are self-made; https needs to be told so, http takes no context.
    return xmlrpclib.Server(url, context=ssl._create_unverified_context()) if url.startswith("https:") else xmlrpclib.Server(url)


# 1. Log into the remote pool
remote = Server(remote_url)
remote_session_id = remote.session.login_with_password("root", remote_password)["Value"]

# 2. Decide where you want the VM to go
sr = remote.SR.get_by_name_label(remote_session_id, "my favourite storage")["Value"][0]
host = remote.Host.get_by_name_label(remote_session_id, "my favourite host")["Value"][0]

# 3. Generate a token representing this destination
dest = remote.VM.migrate_receive(remote_session_id, host, sr, {})["Value"]

# 4. Log into the local pool
local = Server(local_url)
local_session_id = local.session.login_with_password("root", local_password)["Value"]

# 5. Decide which VM we want to move
vm = local.VM.get_by_name_label(local_session_id, "my lovely VM")["Value"][0]

# 6. Migrate the VM:
task = local.Async.VM.migrate(local_session_id, vm, dest, True, {})["Value"]

# Monitor the task for success/failure
while local.task.get_status(local_session_id, task)["Value"] == "pending":
    time.sleep(0.1)
print(local.task.get_status(local_session_id, task)["Value"])
print(local.task.get_error_info(local_session_id, task)["Value"])
print(remote.VM.get_power_state(remote_session_id, remote.VM.get_by_name_label(remote_session_id, "my lovely VM")["Value"][0])["Value"])

# 7. Clean up
remote.session.logout(remote_session_id)
local.session.logout(local_session_id)
