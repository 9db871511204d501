"""Connects and pings as the agent's user, again and again, for so many seconds; says how often it was refused."""
import grp
import os
import socket
import sys
import time

os.setgroups([grp.getgrnam("chat-history").gr_gid])
os.setuid(2001)
answered = refused = cut = 0
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    door = socket.socket(socket.AF_UNIX)
    door.settimeout(20)
    try:
        door.connect("/run/chat-historyd/events.sock")
    except OSError:
        refused += 1
        continue
    try:
        door.send(b'{"type":"ping"}\n')
        answered, cut = (answered + 1, cut) if door.recv(64) else (answered, cut + 1)
    except OSError:
        cut += 1
    door.close()
print(f"refused={refused}" if answered else "nobody answered", f"answered={answered} cut={cut}")
