"""Writes every packet on the loopback interface to a file until it is told to stop (SIGTERM). Root only."""
import signal
import socket
import sys

sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sniffer.bind(("lo", 0))
sniffer.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
sniffer.settimeout(0.2)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
with open(sys.argv[1], "wb") as out:
    print("ready", flush=True)
    while not stopped:
        try:
            out.write(sniffer.recv(1 << 17))
        except socket.timeout:
            pass
