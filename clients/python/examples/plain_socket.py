#!/usr/bin/env python3
"""An agent without LiveKit, Python. Reads "user: …" and "agent: …" lines, ends when all of them are durable.

CHAT_HISTORYD_SOCKET=/run/chat-historyd/events.sock plain_socket.py 68:25:dd:ba:39:78 my-session < conversation.txt
"""

import json
import os
import socket
import sys
import time
import uuid

mac, session = sys.argv[1:3]
with socket.socket(socket.AF_UNIX) as daemon:
    daemon.connect(os.environ.get("CHAT_HISTORYD_SOCKET", "/run/chat-historyd/events.sock"))
    answers = daemon.makefile("r", encoding="utf-8")
    seq = 0

    def send(**line):
        daemon.sendall(json.dumps(line).encode() + b"\n")

    send(type="session_start", v=1, mac_address=mac, session_id=session, stream=uuid.uuid4().hex)
    for said in sys.stdin:
        who, _, text = said.rstrip("\n").partition(": ")
        seq += 1  # with a stream and numbers, nothing is lost or doubled by sending it again after a reconnect
        send(type="message", chat_type=who, content=text, timestamp=time.time(), seq=seq)
    send(type="session_end", reason="done", seq=seq + 1)
    for answer in map(json.loads, answers):
        if answer["type"] == "error":
            sys.exit("refused: %s %s" % (answer["code"], answer.get("field") or ""))
        if answer["type"] == "ack" and answer["seq"] == seq + 1:
            sys.exit(0)  # everything up to this number is on the disk
sys.exit("the daemon went away: connect again and send what was not acknowledged")
