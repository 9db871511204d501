"""A scripted daemon: speaks the protocol as the real one does, and misbehaves on command.

A line counts as durable when it is acknowledged, never before: what a killed peer had read but not acknowledged is gone.
The ``Archive`` outlives the peers, as the store outlives daemons.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections import defaultdict
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

Line = Dict[str, Any]


class Archive:
    """What was made durable, by stream, in order."""

    def __init__(self) -> None:
        self.lines: Dict[str, List[Line]] = defaultdict(list)
        self.last_seq: Dict[str, int] = defaultdict(int)
        self.starts: List[Line] = []
        self.lock = threading.Lock()

    def commit(self, stream: str, batch: List[Line]) -> int:
        with self.lock:
            for line in batch:
                if line["seq"] > self.last_seq[stream]:
                    self.last_seq[stream] = line["seq"]
                    self.lines[stream].append(line)
            return self.last_seq[stream]

    def all(self) -> List[Line]:
        with self.lock:
            return [line for lines in self.lines.values() for line in lines]

    def contents(self) -> List[str]:
        return [line["content"] for line in self.all() if line.get("type") == "message"]

    def kinds(self) -> List[str]:
        return [str(line.get("type")) for line in self.all()]

    def seqs(self) -> List[int]:
        return [line["seq"] for line in self.all()]


class Peer:
    """One life of the daemon on a path."""

    def __init__(self, path: str, archive: Optional[Archive] = None) -> None:
        self.path = path
        self.archive = archive if archive is not None else Archive()
        self.deaf = False  # accepts, never reads
        self.acks = threading.Event()  # unset: reads, makes nothing durable
        self.acks.set()
        self.greets = True  # answers session_start
        self.taken_seq = 0  # what it has in memory alone, of an earlier connection
        self.answer: Callable[[Line], Optional[Any]] = lambda line: None  # bytes or a reply in place of the normal one
        self.read: List[Line] = []  # every line read, repeated ones too
        self.raw = b""
        self.ended = threading.Event()  # a connection was closed by the client
        self._listener: Optional[socket.socket] = None
        self._connections: List[socket.socket] = []
        self._dead = threading.Event()

    def start(self) -> "Peer":
        self.bind()
        threading.Thread(target=self._accept, name="_accept", daemon=True).start()
        return self

    def bind(self) -> None:
        fresh = self.path + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(fresh)
        self._listener.listen(64)
        os.rename(fresh, self.path)  # never a moment without a socket when one is replaced

    def kill(self, unlink: bool = True) -> None:
        self._dead.set()
        if unlink:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        for sock in [self._listener, *self._connections]:
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def say(self, reply: Any) -> None:
        for sock in self._connections:
            with contextlib.suppress(OSError):
                sock.sendall(json.dumps(reply, separators=(",", ":")).encode() + b"\n")

    @property
    def connections(self) -> int:
        return len(self._connections)

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._dead.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(sock)
            threading.Thread(target=self._serve, name="_serve", args=(sock,), daemon=True).start()

    @staticmethod
    def _reply(sock: socket.socket, reply: Any) -> None:
        sock.settimeout(5)
        sock.sendall(reply if isinstance(reply, bytes) else json.dumps(reply, separators=(",", ":")).encode() + b"\n")
        sock.settimeout(0.005)

    def _serve(self, sock: socket.socket) -> None:
        rest, stream = b"", ""
        batch: List[Line] = []
        try:
            sock.settimeout(0.005)
            while not self._dead.is_set():
                while self.deaf and not self._dead.is_set():
                    time.sleep(0.005)
                data: Optional[bytes] = None
                with contextlib.suppress(socket.timeout):
                    data = sock.recv(65536)
                if data is None:
                    if batch and self.acks.is_set():
                        self._reply(sock, {"type": "ack", "seq": self.archive.commit(stream, batch)})
                        batch = []
                    continue
                if not data:
                    self.ended.set()
                    return
                self.raw += data
                lines = (rest + data).split(b"\n")
                rest = lines.pop()
                replies: List[Any] = []
                for line in map(json.loads, lines):
                    self.read.append(line)
                    instead = self.answer(line)
                    if instead is not None:
                        replies.append(instead)
                        if isinstance(instead, dict) and instead.get("fatal"):
                            break
                    elif line["type"] == "session_start":
                        self.archive.starts.append(line)
                        stream = line.get("stream", "")
                        if self.greets:
                            last = self.archive.last_seq[stream]
                            taken = max(last, self.taken_seq)
                            ready = {"type": "ready", "v": 1, "daemon": "peer", "last_seq": last, "taken_seq": taken}
                            replies.append({**ready, "max_line_bytes": 4 << 20})
                    elif "seq" in line:
                        batch.append(line)
                    elif line["type"] == "flush":
                        replies.append({"type": "flushed", "id": line.get("id"), "delivered": 0, "pending": 0, "ok": True})
                    elif line["type"] in ("message", "session_end"):
                        self.archive.lines[""].append(line)
                if batch and self.acks.is_set() and not self._dead.is_set():
                    replies.append({"type": "ack", "seq": self.archive.commit(stream, batch)})
                    batch = []
                for reply in replies:
                    self._reply(sock, reply)
                    if isinstance(reply, dict) and reply.get("fatal"):
                        sock.close()
                        return
        except (OSError, ValueError):
            return


@contextlib.contextmanager
def peer_at(path: str, archive: Optional[Archive] = None) -> Iterator[Peer]:
    peer = Peer(path, archive).start()
    try:
        yield peer
    finally:
        peer.kill()


def eventually(reached: Callable[[], Any], within: float = 10.0) -> None:
    """Waits, outside of any loop, until something holds."""
    deadline = time.monotonic() + within
    while not reached():
        assert time.monotonic() < deadline, "did not happen within %s s" % within
        time.sleep(0.002)


def conversation(archive: Archive) -> List[Tuple[int, str]]:
    return [(line["seq"], str(line.get("content", line["type"]))) for line in archive.all()]
