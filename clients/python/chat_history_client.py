"""Hands every sentence of a voice conversation to ``chat-historyd``, the daemon beside the agent.

    client = ChatHistoryClient()
    client.attach(session, mac_address=device_mac, session_id=ctx.room.name)   # before session.start()
    ctx.add_shutdown_callback(client.on_shutdown)

What it promises:

* It never hurts the agent. No exception leaves a listener, nothing waits, there is no thread, and memory is bounded
  (2 000 lines, 4 MiB; then the oldest goes, and the daemon is told how many went). Importing this module and creating
  a client do no work: the socket is opened in ``attach``, so a warmed-up process may hold a client and be forked.
* It loses nothing it can keep. A line is in the kernel's hands before the listener returns, so a killed agent loses
  nothing that was said. Lines stay here until the daemon has made them durable, and are sent again after a reconnect,
  under the numbers that let the daemon tell a repetition from a new sentence.

What it refuses: reading the daemon's answers for anything but acknowledgement, more than one conversation for one
client, and logging what was said.

One file, Python 3.9 or newer, standard library only: copy it into the agent, or install it as a package.
The protocol is described in the README of chat-historyd.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import datetime
import enum
import json
import logging
import math
import os
import random
import re
import select
import socket
import stat
import threading
import time
import unicodedata
import uuid
import weakref
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Set, Tuple, Union

__all__ = ["ChatHistoryClient", "Stats", "DEFAULT_EVENTS", "default_socket_paths"]
__version__ = "0.1.0"

DEFAULT_EVENTS = (
    "conversation_item_added",
    "user_input_transcribed",
    "function_tools_executed",
    "error",
    "close",
)
"""The events history needs. Interim transcripts are not sent (see ``keep_interim``)."""

_SOCKET_VARIABLE = "CHAT_HISTORYD_SOCKET"
_BACKOFF_FIRST = 0.05
_BACKOFF_MOST = 5.0
_BACKOFF_HURRIED = 0.1  # while somebody waits for the last acks
_STALL_CHECK = 5.0  # how often an unanswered connection is compared with what the path names now
_CLOSE_WAIT = 1.5  # how long on_shutdown waits for the framework's `close`
_SHUTDOWN_BUDGET = 3.0  # LiveKit kills the process 10 s after the first callback, and we are not the only callback
_LINGER = 60.0  # how long what aclose() could not deliver is still tried
_INTERIM_AGE = 10.0  # an older interim transcript is not what the user was saying when the call ended
_MAX_LINE = 1 << 20  # longer lines have their longest strings cut; the daemon's own limit is 4 MiB
_LINES_PER_TURN = 64  # a backlog is written in portions, so that the agent's loop is never held
_NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)
_NOTHING = memoryview(b"")

_log = logging.getLogger("chat_history_client")


class Stats(NamedTuple):
    """Numbers of one client. ``enqueued == acked + dropped + pending`` at every moment."""

    enqueued: int
    """Lines taken."""
    acked: int
    """Lines the daemon has settled: durable, or answered for good."""
    dropped: int
    """Lines given up because memory was full or the daemon never came."""
    pending: int
    """Lines kept here, sent or not."""
    pending_bytes: int
    """Their size."""
    connects: int
    """Connections made."""
    refused: int
    """Error answers of the daemon, and messages not even sent because of a chat type that it does not know."""
    errors: int
    """Exceptions that were kept away from the agent."""


def default_socket_paths() -> List[str]:
    """The paths tried, in order: ``CHAT_HISTORYD_SOCKET`` alone if set, else every default of the daemon."""
    named = os.environ.get(_SOCKET_VARIABLE)
    if named:
        return [named]
    runtime_directories = os.environ.get("RUNTIME_DIRECTORY", "").split(":")
    paths = [os.path.join(directory, "events.sock") for directory in runtime_directories if directory]
    paths.append("/run/chat-historyd/events.sock")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        paths.append(os.path.join(runtime, "chat-historyd", "events.sock"))
    private = "/tmp/chat-historyd-%d" % os.getuid()
    if _is_private(private):
        paths.append(os.path.join(private, "events.sock"))
    return paths


def _is_private(directory: str) -> bool:
    """Anybody may create a name in /tmp: only a directory of our own, writable by us alone, is believed."""
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


# ---------------------------------------------------------------------------------------------------------------------
# From an event to bytes. Nothing here keeps state, and nothing here may fail.
# ---------------------------------------------------------------------------------------------------------------------

# Frames and images are megabytes that would be encoded in the listener; `hash` is bytes that need not be UTF-8.
_LEFT_OUT: Dict[str, Any] = {"conversation_item_added": {"item": {"hash": True, "content": {"__all__": {"frame", "image"}}}}}
# What may hold anything at all (the `source` of an `error` on 1.2.x is the plugin itself) goes first when dumping fails.
_SUSPECTS: Dict[str, Any] = {"error": {"source": True}, "close": {"error": True}}
_PART_FIELDS = ("type", "transcript", "text")
_NOT_FOR_EVENTS = ("seq", "mac_address", "session_id", "macAddress", "sessionId")


def _opaque(value: object) -> Any:
    """What JSON cannot say is named, never shown: a repr may hold anything."""
    return "<%s>" % type(value).__name__


_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_opaque).encode


def _plain(value: Any, depth: int = 24) -> Any:
    """The same value as finite JSON: no NaN, no odd keys, no cycles, no subclass surprises."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth <= 0:
        return _opaque(value)
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth - 1) for item in value]
    return _opaque(value)


def _cut(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= limit else value[:limit] + "…"
    if isinstance(value, dict):
        return {key: _cut(item, limit) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, limit) for item in value]
    return value


def _to_text(payload: Dict[str, Any]) -> str:
    try:
        return _compact(payload)
    except (ValueError, TypeError, RecursionError, AttributeError):
        return _compact(_plain(payload))


def _to_utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        # Two halves of one character find each other, a lone half becomes U+FFFD.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode("utf-8")


def _encode(payload: Dict[str, Any], most: int = _MAX_LINE) -> bytes:
    """One JSON object in UTF-8, without a line end, at most ``most`` bytes long if cutting strings can do that."""
    body = _to_utf8(_to_text(payload))
    limit = most // 4
    while len(body) > most and limit >= 8:
        body = _to_utf8(_to_text(_cut(_plain(payload), limit)))
        limit //= 4
    return body


def _without_media(payload: Dict[str, Any]) -> None:
    item = payload.get("item")
    content = item.get("content") if isinstance(item, dict) else None
    if isinstance(item, dict) and isinstance(content, list):
        item["content"] = [
            {name: part[name] for name in _PART_FIELDS if name in part} if isinstance(part, dict) else part for part in content
        ]


def _salvage(name: str, event: object) -> Dict[str, Any]:
    """The few fields history needs, read one by one, for an event that does not let itself be dumped."""

    def read(source: object, *fields: str) -> Dict[str, Any]:
        found: Dict[str, Any] = {}
        for field in fields:
            try:
                value = getattr(source, field, None)
            except Exception:
                continue
            if value is None or isinstance(value, (str, int, float)):
                found[field] = getattr(value, "value", value)
        return found

    payload = read(event, "transcript", "is_final", "item_id", "reason", "created_at")
    item = getattr(event, "item", None)
    if item is not None:
        payload["item"] = read(item, "id", "type", "role", "interrupted", "transcript_confidence", "created_at")
        parts: List[Any] = []
        for part in getattr(item, "content", None) or ():
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(getattr(part, "transcript", None), str):
                parts.append({"type": "audio_content", "transcript": part.transcript})
        payload["item"]["content"] = parts
    for field in ("function_calls", "function_call_outputs"):
        calls = getattr(event, field, None)
        if calls is not None:
            fields = ("id", "type", "call_id", "name", "arguments", "output", "is_error", "created_at")
            payload[field] = [read(call, *fields) for call in calls if call is not None]
    problem = getattr(event, "error", None)
    if problem is not None:
        payload["error"] = read(problem, "type", "timestamp", "label", "recoverable") or {"type": type(problem).__name__}
    payload["salvaged"] = True
    return {"type": name, **{key: value for key, value in payload.items() if key != "type"}}


def _dump(name: str, event: object) -> Dict[str, Any]:
    """The event as the framework itself dumps it: a copy, for items change after they were emitted."""
    payload: Optional[Dict[str, Any]] = None
    if isinstance(event, dict):
        payload = _plain(event)
    else:
        dump = getattr(event, "model_dump", None)
        if callable(dump):
            for left_out in (_LEFT_OUT.get(name), _SUSPECTS.get(name)):
                try:
                    found = dump(mode="json", exclude=left_out, warnings=False)
                except Exception:
                    continue
                if isinstance(found, dict):
                    payload = found
                    break
    if payload is None:
        payload = _salvage(name, event)
    payload["type"] = name
    for field in _NOT_FOR_EVENTS:
        payload.pop(field, None)
    _without_media(payload)
    return payload


def _words(text: str) -> List[str]:
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())


def _covers(text: str, part: str) -> bool:
    """Whether the words of ``part`` stand as one stretch in ``text``."""
    return (" %s " % " ".join(_words(part))) in (" %s " % " ".join(_words(text)))


# The fields of message(), which the daemon takes as they should be or not at all. None: there is no such value in it.

_CHAT_TYPES = (1, 2, 3, "user", "agent", "tool")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LONGEST_ID = 200


def _bare(value: object) -> object:
    return value.value if isinstance(value, enum.Enum) else value


def _chat_type(value: object) -> Union[int, str, None]:
    value = _bare(value)
    if isinstance(value, bool):
        return None
    return next((known for known in _CHAT_TYPES if value == known), None)


def _id(value: object) -> Optional[str]:
    value = _bare(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, uuid.UUID)):
        return None
    text = str(value)
    return None if len(text) > _LONGEST_ID or _CONTROL.search(text) else text


def _timestamp(value: object) -> Union[float, str, None]:
    value = _bare(value)
    if isinstance(value, datetime.datetime):
        return value.timestamp()  # without a zone: local time, as Python has it
    if isinstance(value, str):
        if not _RFC_3339.fullmatch(value):
            return None
        datetime.datetime.strptime(value[:10] + value[11:19], "%Y-%m-%d%H:%M:%S")  # is there such a day?
        return value
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    seconds = float(value)
    return seconds if math.isfinite(seconds) else None


def _flag(value: object) -> Optional[bool]:
    return bool(value) if value in (0, 1) else None


def _metadata(value: object) -> Optional[Dict[str, Any]]:
    return _plain(dict(value)) if isinstance(value, Mapping) else None


_OPTIONAL: Dict[str, Callable[[object], object]] = {
    "timestamp": _timestamp,
    "id": _id,
    "interrupted": _flag,
    "metadata": _metadata,
}


_BARE_MAC = re.compile(r"^[0-9a-f]{12}$")
_ROOM_MAC = re.compile(r"_[0-9a-fA-F]{12}(_[^_]*)?$")


def _mac_for_wire(mac_address: object, session_id: str) -> Optional[str]:
    """The MAC in canonical form. ``None`` when the daemon had better take it from the room name."""
    text = "" if mac_address is None else str(mac_address).strip()
    bare = re.sub(r"[:\-.\s]", "", text).lower()
    if _BARE_MAC.match(bare):
        return ":".join(bare[i : i + 2] for i in range(0, 12, 2))
    return None if _ROOM_MAC.search(session_id) else text


def _running_loop() -> Optional[asyncio.AbstractEventLoop]:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


# ---------------------------------------------------------------------------------------------------------------------
# The process: forks and exits. Registered by the first attach, never at import.
# ---------------------------------------------------------------------------------------------------------------------

_live: "weakref.WeakSet[ChatHistoryClient]" = weakref.WeakSet()
_hooked = False


def _hook_process() -> None:
    global _hooked
    if not _hooked:
        _hooked = True
        atexit.register(_at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    # The parent's connection must end with the parent: a child that held it open would hide the parent's death.
    for client in list(_live):
        client._let_go_of_socket()
        client._forget_other_threads()
    _live.clear()


def _at_exit() -> None:
    deadline = time.monotonic() + 1.0
    for client in list(_live):
        client._at_exit(deadline)


class _Line(NamedTuple):
    seq: int
    data: bytes
    told: int  # how many dropped lines it tells the daemon of


class ChatHistoryClient:
    """One conversation's way to the daemon. Every method may be called in any state; none raises (cancelling apart).

    ``socket_path``: one path or several to try in order; by default ``default_socket_paths()``, read at each attempt.
    ``events``: the framework's events to send. ``max_lines``, ``max_bytes``: what is kept while the daemon is away.
    ``keep_interim``: when the conversation closes over words that were heard but not yet final (livekit-agents 1.2.x
    loses them), the last interim transcript is sent as a final one.
    """

    def __init__(
        self,
        socket_path: Union[str, Iterable[str], None] = None,
        *,
        events: Iterable[str] = DEFAULT_EVENTS,
        max_lines: int = 2000,
        max_bytes: int = 4 << 20,
        keep_interim: bool = True,
    ) -> None:
        self._given_paths = [socket_path] if isinstance(socket_path, str) else list(socket_path or ())
        self._events = tuple(events)
        self._max_lines = max(1, max_lines)
        self._max_bytes = max(1, max_bytes)
        self._keep_interim = keep_interim
        self._pid = 0  # of the process that attached
        self._forget_other_threads()
        self._reset()

    def _forget_other_threads(self) -> None:
        """A fork copies the lock as it is, but not the thread that would let it go."""
        # Queues, books and socket are touched by one thread at a time, see `_hold`. Only `_handed_over` takes lines from any
        # thread at any moment: appending to a deque needs no lock, so that not even a signal handler can come in between.
        self._lock = threading.RLock()
        self._held = False
        self._handed_over: Deque[bytes] = deque()
        self._unlogged: Deque[str] = deque()

    def _reset(self) -> None:
        """The state of a client that was never attached."""
        self._start: Dict[str, Any] = {}
        self._sessions: List[Callable[[], Optional[object]]] = []
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._thread = 0
        # Lines: `_unacked` were written to this connection, `_waiting` not yet. Two queues, so that neither is searched.
        self._seq = 0
        self._written = 0  # the highest number ever given to a connection
        self._unacked: Deque[_Line] = deque()
        self._waiting: Deque[_Line] = deque()
        self._bytes = 0
        # Dropped after they were written: the daemon may have them nevertheless, its next answer tells.
        self._doubtful: Deque[Tuple[int, int, int]] = deque()  # number, connection, told
        self._enqueued = self._acked = self._lost = self._refused = self._errors = self._connects = 0
        # The connection.
        self._sock: Optional[socket.socket] = None
        self._identity: Optional[Tuple[str, int, int]] = None  # path, device, inode
        self._connected_at = 0.0
        self._line_limit = _MAX_LINE
        self._flowing = False  # lines may be written (at once on the first connection, after `ready` on later ones)
        self._ready = False
        self._out: memoryview = _NOTHING
        self._in = b""
        self._reading = self._writing = False
        self._heard = False  # since the last stall check
        self._attempt = 0
        self._retry_at = 0.0
        self._retry_timer: Optional[asyncio.TimerHandle] = None
        self._stall_timer: Optional[asyncio.TimerHandle] = None
        # The end.
        self._interim: Optional[Tuple[str, float, Any]] = None
        self._close_seen = False
        self._end_seq = 0  # of the last session_end
        self._end_reason = ""
        self._told = 0  # dropped lines that a session_end told of: the daemon adds up what it is told
        self._hurried = False
        self._give_up_at: Optional[float] = None
        self._waiters: Set["asyncio.Future[None]"] = set()
        self._said: Set[str] = set()

    # -- what the agent calls ------------------------------------------------------------------------------------------

    def attach(
        self,
        session: Any,
        *,
        mac_address: object = None,
        session_id: object,
        agent_id: Optional[str] = None,
    ) -> bool:
        """Listens to ``session`` from now on: call it before ``session.start()``, which emits the first items.

        ``session_id`` is the room name; a missing or odd ``mac_address`` is taken from it by the daemon. ``session``
        may be ``None`` for an agent without LiveKit. A second session of the same conversation may be attached too;
        another conversation needs a client of its own. False (and a log line) when nothing will be recorded.
        """
        try:
            return self._attach(session, mac_address, str(session_id).strip(), agent_id)
        except Exception as problem:
            self._swallow("attach", problem)
            return False

    def message(
        self,
        chat_type: Union[int, str, enum.Enum],
        content: object,
        *,
        id: Union[str, int, uuid.UUID, None] = None,  # noqa: A002 — the name on the wire
        timestamp: Union[float, str, datetime.datetime, None] = None,
        interrupted: Optional[bool] = None,
        metadata: Optional[Mapping[str, Any]] = None,
    ) -> bool:
        """One message that is no event of the framework. 1 or "user", 2 or "agent"; 3 or "tool" is refused and lost unless
        the daemon has ``manager_api.send_tools`` on. Any thread may call.

        ``timestamp``: seconds, milliseconds, RFC 3339 or a ``datetime``; now, if it is none of them. Another optional field
        that the daemon would refuse is left out, and the log says so once. False: nothing was recorded.
        """
        try:
            if os.getpid() != self._pid:
                self._warn("unattached", "message() before attach(), or in a forked child: not recorded")
                return False
            speaker = _chat_type(chat_type)
            if speaker is None:
                with self._lock:
                    self._refused += 1
                self._warn("chat type", "message(): a chat type that is not 1, 2, 3, 'user', 'agent' or 'tool': not recorded")
                return False
            payload: Dict[str, Any] = {"type": "message", "chat_type": speaker}
            payload["content"] = "" if content is None else str(content)
            payload["timestamp"] = time.time()
            fields = {"timestamp": timestamp, "id": id, "interrupted": interrupted, "metadata": metadata}
            payload.update(self._usable(fields))
            self._hand_over(_encode(payload, self._line_limit))
            return True
        except Exception as problem:
            self._swallow("message", problem)
            return False

    def _usable(self, fields: Dict[str, Any]) -> Iterator[Tuple[str, object]]:
        """The optional fields of a message that the daemon takes. One that it would refuse must not cost the sentence."""
        for name, value in fields.items():
            if value is None:
                continue
            try:
                found = _OPTIONAL[name](value)
            except Exception:  # a date that is none, a number without end, an object that explodes
                found = None
            if found is None:
                self._warn("unusable " + name, "message(): %s is not what the daemon takes: left out" % name)
            else:
                yield name, found

    async def on_shutdown(self, reason: str = "") -> None:
        """For ``ctx.add_shutdown_callback``: lets the framework finish first, then ends the session. At most 3 s.

        livekit-agents 1.2.x runs the shutdown callbacks beside the session's own close, which emits the last item.
        """
        try:
            if not self._is_mine():
                return
            deadline = time.monotonic() + _SHUTDOWN_BUDGET
            await self._until(lambda: self._close_seen or not self._sessions, min(deadline, time.monotonic() + _CLOSE_WAIT))
            await self._finish(reason, deadline)
        except asyncio.CancelledError:
            self._end(reason)
            raise
        except Exception as problem:
            self._swallow("on_shutdown", problem)

    async def aclose(self, reason: str = "", timeout: float = _SHUTDOWN_BUDGET) -> bool:
        """Ends the session and waits for the acks. True: the daemon has everything, durably.

        False: it has not, yet; what is left is tried for another minute while this loop runs.
        """
        try:
            if not self._is_mine():
                return True
            return await self._finish(reason, time.monotonic() + max(0.0, timeout))
        except asyncio.CancelledError:
            self._end(reason)
            raise
        except Exception as problem:
            self._swallow("aclose", problem)
            return False

    def flush_sync(self, timeout: float = 0.5) -> bool:
        """Blocks for at most ``timeout`` seconds to get everything acked, with or without a loop. True: it is.

        Called by itself when the interpreter exits. A killed process needs none of this: its lines are written already.
        """
        try:
            return not self._is_mine() or self._flush_sync(time.monotonic() + max(0.0, timeout))
        except Exception as problem:
            self._swallow("flush_sync", problem)
            return False

    @property
    def stats(self) -> Stats:
        """The numbers of this client, now."""
        with self._lock:
            handed_over = self._handed_over.copy()  # other threads append to the original
            return Stats(
                enqueued=self._enqueued + len(handed_over),
                acked=self._acked,
                dropped=self._lost + len(self._doubtful),
                pending=len(self._unacked) + len(self._waiting) + len(handed_over),
                pending_bytes=self._bytes + sum(map(len, handed_over)),
                connects=self._connects,
                refused=self._refused,
                errors=self._errors,
            )

    # -- listening -----------------------------------------------------------------------------------------------------

    def _attach(self, session: Any, mac_address: object, session_id: str, agent_id: Optional[str]) -> bool:
        if not session_id:
            self._warn(
                "nameless", "session_id is empty (ctx.room.name is, before ctx.connect(): ctx.job.room.name is not); not attached"
            )
            return False
        start: Dict[str, Any] = {"type": "session_start", "v": 1, "session_id": session_id}
        mac = _mac_for_wire(mac_address, session_id)
        if mac is not None:
            start["mac_address"] = mac
        if agent_id:
            start["agent_id"] = str(agent_id)
        _hook_process()
        _live.add(self)
        with self._hold() as held:
            if not held or not self._begin(start):
                return False
            fresh = session is not None and not any(known() is session for known in self._sessions)
            if fresh:
                self._sessions.append(_reference(session))
        if fresh:
            for name in self._events:
                try:
                    session.on(name, self._listener(name))
                except Exception as problem:
                    self._swallow("attach to %s" % name, problem)
        self._work()
        return True

    def _begin(self, start: Dict[str, Any]) -> bool:
        """Introduces the conversation, unless another one is under way."""
        if os.getpid() != self._pid:  # first use, or the first in a forked child: nothing of the parent's counts
            self._let_go_of_socket()
            self._reset()
            self._pid = os.getpid()
        if self._start and not _same_conversation(self._start, start):
            if not self._is_over():
                self._warn("second", "one client, one conversation: the next one needs its own ChatHistoryClient; not attached")
                return False
            self._leave_loop()
            self._reset()
        if not self._start:
            # From the kernel, not from a generator that forked children share.
            start["stream"] = os.urandom(16).hex()
            start["ack"] = True
            start["client"] = "chat_history_client.py/" + __version__
            self._start = start
        self._close_seen = False
        self._give_up_at = None
        self._hurried = False
        if self._settle_on_loop():
            self._connect_if_due()
        return True

    def _listener(self, name: str) -> Callable[..., None]:
        # `*args`: the emitter's call itself cannot fail. A TypeError out of a listener would kill the agent's reply.
        def on_event(*args: Any) -> None:
            try:
                if os.getpid() == self._pid:
                    self._take(name, args[0] if args else None)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as problem:  # a panic inside pydantic's core is no Exception
                self._swallow("the listener of %s" % name, problem)

        return on_event

    def _take(self, name: str, event: object) -> None:
        if name == "user_input_transcribed":
            if getattr(event, "is_final", True) is False:
                if self._keep_interim:
                    self._interim = (str(getattr(event, "transcript", "")), time.monotonic(), getattr(event, "language", None))
                return
            self._interim = None
        elif name == "close":
            self._rescue_interim()
        payload = _dump(name, event)
        if name == "user_input_transcribed" and payload.get("is_final") is False:
            return
        if name == "conversation_item_added" and self._interim is not None:
            self._forget_covered_interim(payload)
        self._hand_over(_encode(payload, self._line_limit))
        if name == "close":
            self._close_seen = True
            if self._end_seq:  # on_shutdown could not wait so long: the end is here, after the last words
                self._end(self._end_reason)
            self._wake()

    def _forget_covered_interim(self, payload: Dict[str, Any]) -> None:
        item = payload.get("item")
        if self._interim is not None and isinstance(item, dict) and item.get("role") == "user":
            said = " ".join(part for part in item.get("content") or () if isinstance(part, str))
            if _covers(said, self._interim[0]):
                self._interim = None

    def _rescue_interim(self) -> None:
        interim, self._interim = self._interim, None
        if interim is None or time.monotonic() - interim[1] > _INTERIM_AGE or not interim[0].strip():
            return
        payload = {"type": "user_input_transcribed", "transcript": interim[0], "is_final": True, "promoted": True}
        payload.update(language=_plain(interim[2]), created_at=time.time() - (time.monotonic() - interim[1]))
        self._hand_over(_encode(payload, self._line_limit))

    # -- lines ---------------------------------------------------------------------------------------------------------

    def _hand_over(self, body: bytes) -> None:
        """Into the kernel before this returns, unless lines before it are still waiting or another thread owns the socket."""
        self._handed_over.append(body)
        self._work()

    def _work(self) -> None:
        """Takes over what was handed over, by this thread or another, and what is handed over meanwhile."""
        while self._handed_over:
            owner = self._loop_elsewhere()
            if owner is not None and not self._is_too_much_handed_over():
                try:
                    owner.call_soon_threadsafe(self._on_loop)
                    return
                except RuntimeError:  # closed in this very moment
                    pass
            with self._hold() as held:
                if not held:
                    return
                if self._settle_on_loop():
                    self._absorb(_LINES_PER_TURN)
                else:
                    while self._is_too_much_handed_over():
                        self._handed_over.popleft()
                        self._enqueued += 1
                        self._lost += 1
                loop = self._loop
            if self._handed_over and loop is not None and loop is _running_loop():
                loop.call_soon(self._on_loop)
                return

    def _is_too_much_handed_over(self) -> bool:
        bodies = self._handed_over.copy()
        return len(bodies) > self._max_lines or (len(bodies) > 1 and sum(map(len, bodies)) > self._max_bytes)

    def _absorb(self, most: Optional[int] = None) -> None:
        """Gives the lines that were handed over their numbers."""
        there = len(self._handed_over)
        for _ in range(there if most is None else min(there, most)):
            self._push(self._handed_over.popleft())

    def _push(self, body: bytes, told: int = 0) -> int:
        self._seq += 1
        self._enqueued += 1
        line = _Line(self._seq, b'%s,"seq":%d}\n' % (body[:-1], self._seq), told)
        self._make_room(len(line.data))
        caught_up = not self._waiting and not self._out
        self._waiting.append(line)
        self._bytes += len(line.data)
        if self._sock is None:
            self._connect_if_due()
        elif caught_up and self._flowing:
            self._pump()
        self._watch_for_stall()
        if self._loop is None and self._sock is not None:
            self._on_readable()  # nobody else will read the acks
        return line.seq

    def _make_room(self, size: int) -> None:
        while (self._unacked or self._waiting) and (
            len(self._unacked) + len(self._waiting) >= self._max_lines or self._bytes + size > self._max_bytes
        ):
            if self._unacked:
                line = self._unacked.popleft()
                self._doubtful.append((line.seq, self._connects, line.told))
                if len(self._doubtful) > 4096:
                    self._lose(self._doubtful.popleft()[2])
            else:
                line = self._waiting.popleft()
                self._lose(line.told)
            self._bytes -= len(line.data)
            self._warn("dropping", "the daemon is away or stalled and memory is full: dropping the oldest lines")

    def _lose(self, told: int) -> None:
        """A line will never arrive, nor what it told."""
        self._lost += 1
        self._told -= told

    def _settled_up_to(self, seq: int) -> bool:
        """What the daemon has answered for leaves our memory. Whether anything did."""
        seq = min(seq, self._written)
        before = self._acked
        for queue in (self._unacked, self._waiting):
            while queue and queue[0].seq <= seq:
                self._bytes -= len(queue.popleft().data)
                self._acked += 1
        while self._doubtful and self._doubtful[0][0] <= seq:
            self._doubtful.popleft()
            self._acked += 1
        return self._acked > before

    def _all_settled(self) -> bool:
        return not self._unacked and not self._waiting and not self._handed_over

    def _is_over(self) -> bool:
        """Ended, delivered, and nothing more to come from the framework."""
        return bool(self._end_seq) and self._all_settled() and (self._close_seen or not self._sessions)

    # -- the connection ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _hold(self) -> Iterator[bool]:
        """One thread at a time, and never for long: whoever holds does not wait for anything, and calls nothing of the agent's.

        False: this very thread is in the middle of it already, for a signal handler or a destructor may call us as well.
        What it handed over is found by ``_work``, when the one that was interrupted goes on.
        """
        try:
            with self._lock:
                if self._held:
                    yield False
                    return
                self._held = True
                try:
                    yield True
                finally:
                    self._held = False
        finally:
            self._log_if_free()

    def _on_loop(self, what: Optional[Callable[[], None]] = None) -> None:
        """Everything that a loop calls."""
        try:
            if os.getpid() != self._pid:
                return
            with self._hold() as held:
                if held and self._settle_on_loop() and what is not None:
                    what()
            self._work()
        except Exception as problem:
            self._swallow("a turn of the loop", problem)

    def _loop_elsewhere(self) -> Optional[asyncio.AbstractEventLoop]:
        """The loop that owns the socket, if it runs in another thread."""
        owner, running = self._loop, _running_loop()
        if owner is None or owner is running or not owner.is_running():
            return None
        return None if running is None and threading.get_ident() == self._thread else owner

    def _settle_on_loop(self) -> bool:
        """Makes the running loop ours where that is possible. False: another thread's loop owns the socket."""
        if self._loop_elsewhere() is not None:
            return False
        running, owner = _running_loop(), self._loop
        if running is not None and running is owner:
            self._thread = threading.get_ident()
            return True
        if running is not None:  # the first loop, or the one after a loop that ended
            self._leave_loop()
            self._loop = running
            self._thread = threading.get_ident()
            self._watch(True)
            if self._sock is None and self._retry_at:
                delay = max(0.0, self._retry_at - time.monotonic())
                self._retry_timer = running.call_later(delay, self._on_loop, self._on_retry)
            elif self._out or self._waiting:
                self._want_write(True)
        elif owner is not None and owner.is_closed():
            self._leave_loop()
        elif owner is not None and not owner.is_running() and threading.get_ident() != self._thread:
            # It may run again at any moment, in its own thread: leave it alone, it finds us when it does.
            self._leave_loop()
            with contextlib.suppress(RuntimeError):
                owner.call_soon_threadsafe(self._on_loop)
        return True

    def _leave_loop(self) -> None:
        for timer in (self._retry_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._retry_timer = self._stall_timer = None
        self._watch(False)
        self._loop = None

    def _watch(self, on: bool) -> None:
        loop, sock = self._loop, self._sock
        if loop is None or sock is None or loop.is_closed():
            self._reading = self._writing = False
            return
        if not on:
            self._want_write(False)
        if on and not self._reading:
            loop.add_reader(sock, self._on_loop, self._on_readable)
        elif not on and self._reading:
            loop.remove_reader(sock)
        self._reading = on

    def _want_write(self, on: bool) -> None:
        loop, sock = self._loop, self._sock
        if loop is None or sock is None or loop.is_closed() or self._writing == on:
            return
        if on:
            loop.add_writer(sock, self._on_loop, self._pump)
        else:
            loop.remove_writer(sock)
        self._writing = on

    def _connect_if_due(self) -> None:
        if self._sock is None and self._start and time.monotonic() >= self._retry_at:
            self._connect()

    def _connect(self) -> None:
        self._stop_retrying()
        try:
            paths = self._given_paths or default_socket_paths()
        except AttributeError:  # a system without users has no Unix sockets either
            paths = []
        reasons: List[str] = []
        for path in paths:
            sock: Optional[socket.socket] = None
            try:
                found = os.stat(path)
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.setblocking(False)
                sock.connect(path)  # a Unix socket connects at once or not at all
            except (OSError, ValueError, AttributeError) as problem:
                if sock is not None:
                    sock.close()
                why = os.strerror(problem.errno) if isinstance(problem, OSError) and problem.errno else type(problem).__name__
                reasons.append("%r: %s" % (path, why))
                continue
            self._connected(sock, (path, found.st_dev, found.st_ino))
            return
        self._warn("absent", "chat-historyd is not reachable (%s): keeping lines and trying again" % "; ".join(reasons))
        self._retry_later()

    def _connected(self, sock: socket.socket, identity: Tuple[str, int, int]) -> None:
        first = self._connects == 0
        self._connects += 1
        self._sock, self._identity = sock, identity
        self._connected_at = time.monotonic()
        self._ready = False
        # A new stream has nothing to ask for: its lines follow at once, so that they are in the kernel's hands.
        # Later, only `ready` tells where to go on.
        self._flowing = first
        self._in = b""
        self._out = memoryview(_encode(self._start) + b"\n")
        self._watch(True)
        self._pump()
        self._watch_for_stall()

    def _lost_connection(self) -> None:
        """Everything that was not acked goes back to the front of the queue."""
        if self._sock is None:
            return
        self._watch(False)
        self._sock.close()
        self._sock = None
        self._flowing = self._ready = False
        self._out, self._in = _NOTHING, b""
        self._waiting.extendleft(reversed(self._unacked))
        self._unacked.clear()
        if time.monotonic() - self._connected_at > _BACKOFF_MOST:
            self._attempt = 0
        self._retry_later()

    def _retry_later(self, at_least: float = 0.0) -> None:
        self._stop_retrying()
        if self._is_over():
            return  # a late line connects by itself
        now = time.monotonic()
        if self._give_up_at is not None and now >= self._give_up_at:
            self._give_up()
            return
        delay = min(_BACKOFF_MOST, _BACKOFF_FIRST * 2.0 ** min(self._attempt, 16))
        if self._hurried:
            delay = min(delay, _BACKOFF_HURRIED)
        delay = max(delay, at_least) * random.SystemRandom().uniform(0.6, 1.0)
        self._attempt += 1
        self._retry_at = now + delay
        if self._loop is not None and not self._loop.is_closed():
            self._retry_timer = self._loop.call_later(delay, self._on_loop, self._on_retry)

    def _stop_retrying(self) -> None:
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        self._retry_at = 0.0

    def _on_retry(self) -> None:
        try:
            self._retry_timer = None
            if self._sock is None:
                self._connect()
        except Exception as problem:
            self._swallow("connect", problem)

    def _give_up(self) -> None:
        left = len(self._unacked) + len(self._waiting)
        if left:
            for line in (*self._unacked, *self._waiting):
                self._lose(line.told)
            self._unacked.clear()
            self._waiting.clear()
            self._bytes = 0
            self._warn("gave up", "the daemon did not come back within a minute after the end: %d lines given up" % left)
        self._wake()

    def _watch_for_stall(self) -> None:
        if self._stall_timer is None and self._loop is not None and not self._loop.is_closed() and not self._all_settled():
            self._heard = False
            self._stall_timer = self._loop.call_later(_STALL_CHECK, self._on_loop, self._on_stall_check)

    def _on_stall_check(self) -> None:
        """A daemon that hangs holds its connections; a fresh one may have taken over the path meanwhile."""
        try:
            self._stall_timer = None
            if self._sock is not None and not self._heard and self._identity is not None:
                path, device, inode = self._identity
                try:
                    found = os.stat(path)
                    replaced = (found.st_dev, found.st_ino) != (device, inode)
                except OSError:
                    replaced = False
                if replaced:
                    self._lost_connection()
            if self._give_up_at is not None and time.monotonic() >= self._give_up_at and self._sock is not None:
                self._lost_connection()
            self._watch_for_stall()
        except Exception as problem:
            self._swallow("stall check", problem)

    def _pump(self) -> None:
        """Writes what the socket takes, a portion at most."""
        sock = self._sock
        if sock is None:
            return
        more = False
        try:
            for _ in range(_LINES_PER_TURN):
                if not self._out:
                    if not self._flowing or not self._waiting:
                        break
                    line = self._waiting.popleft()
                    self._unacked.append(line)
                    self._out = memoryview(line.data)
                sent = sock.send(self._out, _NO_SIGNAL)
                self._out = self._out[sent:]
                if self._unacked:
                    self._written = max(self._written, self._unacked[-1].seq)
            more = bool(self._out) or (self._flowing and bool(self._waiting))
        except BlockingIOError:
            more = True
        except OSError:
            self._drain_answers()
            return
        self._want_write(more)

    def _drain_answers(self) -> None:
        """The other side is gone; what it acked before that is still readable."""
        for _ in range(64):
            if self._sock is None:
                return
            self._on_readable()
        self._lost_connection()

    def _on_readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            data = sock.recv(8192)  # at most some hundred answers a turn of the agent's loop
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._lost_connection()
            return
        self._heard = True
        lines = (self._in + data).split(b"\n")
        self._in = lines.pop()
        for line in lines:
            try:
                if line and self._sock is sock:
                    self._on_answer(line)
            except Exception as problem:
                self._swallow("an answer", problem)
        if len(self._in) > 65536:
            self._lost_connection()  # no daemon of ours talks so
        elif self._sock is sock and self._flowing and self._waiting and not self._writing:
            self._pump()  # only now: a failing write must not overtake an answer that was read already

    def _on_answer(self, line: bytes) -> None:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            self._refused += 1
            self._warn("answer", "the other side of the socket does not speak the protocol of chat-historyd")
            return
        kind, seq = answer.get("type"), answer.get("seq")
        if kind == "ack" and isinstance(seq, int):
            self._on_ack(seq)
        elif kind == "ready":
            self._on_ready(answer.get("last_seq"), answer.get("taken_seq"), answer.get("max_line_bytes"))
        elif kind == "error":
            self._on_error(answer)
        # `draining` asks nothing of us: it reads on for a while, and the end of the connection follows.

    def _on_ack(self, seq: int) -> None:
        if self._settled_up_to(seq):
            self._attempt = 0
            self._said.discard("absent")
            self._said.discard("dropping")
        if self._all_settled():
            self._wake()

    def _on_ready(self, last_seq: object, taken_seq: object, max_line_bytes: object) -> None:
        self._ready = True
        if isinstance(max_line_bytes, int):
            self._line_limit = max(1024, min(_MAX_LINE, max_line_bytes - 64))  # room for seq
        self._on_ack(last_seq if isinstance(last_seq, int) else 0)
        # What was dropped after it had been written to an earlier connection did not arrive there, unless the daemon has it
        # in memory: while its disk fails, nothing is settled.
        taken = taken_seq if isinstance(taken_seq, int) else 0
        still: Deque[Tuple[int, int, int]] = deque()
        for doubtful in self._doubtful:
            seq, connection, told = doubtful
            if connection < self._connects and seq > taken:
                self._lose(told)
            else:
                still.append(doubtful)
        self._doubtful = still
        self._flowing = True

    def _on_error(self, answer: Dict[str, Any]) -> None:
        self._refused += 1
        code = re.sub(r"\W", "", str(answer.get("code")))[:40]
        field = re.sub(r"\W", "", str(answer.get("field") or ""))[:40]
        self._warn("error " + code, "chat-historyd answers %s%s" % (code, " for " + field if field else ""))
        if answer.get("fatal") is True:
            self._lost_connection()
        elif not self._ready and answer.get("seq") is None:
            # session_start itself was refused: anything sent now would be refused line by line, and so be lost.
            self._lost_connection()
            self._retry_later(at_least=_BACKOFF_MOST)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _end(self, reason: object) -> None:
        try:
            self._end_reason = str(reason or "")[:200]
            owner = self._loop_elsewhere()
            if owner is not None:
                with contextlib.suppress(RuntimeError):  # closed in this very moment
                    owner.call_soon_threadsafe(self._on_loop, self._push_end)
                    return
            with self._hold() as held:
                if held and self._settle_on_loop():
                    self._push_end()
            self._work()
        except Exception as problem:
            self._swallow("session_end", problem)

    def _push_end(self) -> None:
        self._absorb()
        if self._end_seq and self._end_seq == self._seq:
            return
        self._make_room(512)
        # What an earlier end told is not said again; some of it may have arrived after all.
        dropped = max(0, self.stats.dropped - self._told)
        self._told += dropped
        end = {"type": "session_end", "reason": self._end_reason, "dropped": dropped}
        self._end_seq = self._push(_encode(end), dropped)

    async def _finish(self, reason: object, deadline: float) -> bool:
        owner = self._loop_elsewhere()
        if owner is not None:
            # Called on another loop than the one that owns the socket: it is done there.
            there = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._finish(reason, deadline), owner))
            try:
                while not there.done() and owner.is_running():
                    await asyncio.wait({there}, timeout=0.05)
            finally:
                there.cancel()
            if not there.cancelled():
                return there.result()
            return await self._finish(reason, deadline)  # that loop came to its end meanwhile
        self._end(reason)
        with self._hold() as held:
            self._hurried = True
            if held and self._settle_on_loop() and self._sock is None and not self._all_settled():
                self._attempt = 0
                self._connect()
        await self._until(self._all_settled, deadline)
        with self._hold():
            self._hurried = False
            done = self._all_settled()
            self._give_up_at = time.monotonic() + _LINGER
            if self._is_over():
                self._lost_connection()
            elif not done:
                self._warn("not acked", "%d lines are not acknowledged at the end of the session" % self.stats.pending)
        return done

    async def _until(self, reached: Callable[[], bool], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while not reached():
            left = deadline - time.monotonic()
            if left <= 0:
                return
            waiter: "asyncio.Future[None]" = loop.create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait({waiter}, timeout=min(left, 0.25))
            finally:
                self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in list(self._waiters):
            if waiter.get_loop() is _running_loop() and not waiter.done():
                waiter.set_result(None)

    def _flush_sync(self, deadline: float) -> bool:
        next_try = 0.0
        while True:
            with self._hold() as held:
                if not held:
                    return False
                here = self._settle_on_loop()  # else a loop in another thread does the work; we watch
                if here:
                    self._absorb()
                now = time.monotonic()
                if self._all_settled() or now >= deadline:
                    break
                if here and self._sock is None and now >= next_try:
                    next_try = now + _BACKOFF_FIRST
                    self._connect()
                sock = self._sock if here else None
                descriptor = -1 if sock is None else sock.fileno()
                wants = select.POLLIN | (select.POLLOUT if self._out or (self._flowing and self._waiting) else 0)
            if sock is None:
                time.sleep(min(_BACKOFF_FIRST if here else 0.005, deadline - now))
                continue
            poll = select.poll()
            poll.register(descriptor, wants)
            found = poll.poll(min(0.1, deadline - now) * 1000)  # another thread may settle, or replace, what we wait for
            with self._hold() as held:
                for _, what in found if held and self._sock is sock and self._settle_on_loop() else ():
                    if what & select.POLLOUT:
                        self._pump()
                    if what & ~select.POLLOUT:
                        self._on_readable()
        self._work()
        return self._all_settled()

    def _at_exit(self, deadline: float) -> None:
        try:
            if self._is_mine():
                if not self._end_seq:
                    self._end("process exit")
                    while not self._end_seq and self._loop_elsewhere() is not None and time.monotonic() < deadline:
                        time.sleep(0.005)
                self._flush_sync(min(deadline, time.monotonic() + 0.5))
        except Exception as problem:
            self._swallow("exit", problem)

    # -- small things --------------------------------------------------------------------------------------------------

    def _is_mine(self) -> bool:
        return bool(self._start) and os.getpid() == self._pid

    def _let_go_of_socket(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()  # the parent's descriptor and its loop know nothing of this

    def _swallow(self, where: str, problem: BaseException) -> None:
        # The name of the class only: the text of an exception may quote what was said.
        self._count_error()
        self._warn("trouble in " + where, "%s in %s: the agent is not affected" % (type(problem).__name__, where))

    def _count_error(self) -> None:
        with self._lock:
            self._errors += 1

    def _warn(self, kind: str, text: str) -> None:
        """One log line for each kind of trouble, until it is over."""
        if kind in self._said or len(self._said) > 64:
            return
        self._said.add(kind)
        self._unlogged.append(text)
        self._log_if_free()

    def _log_if_free(self) -> None:
        """A handler of the agent's may wait, or hold what another thread waits for: whoever holds us logs when it let go."""
        while self._unlogged and not self._held:
            try:
                text = self._unlogged.popleft()
            except IndexError:  # another thread has it
                return
            try:
                _log.warning("%s", text)
            except Exception:
                self._count_error()


def _same_conversation(one: Dict[str, Any], other: Dict[str, Any]) -> bool:
    macs = {start["mac_address"] for start in (one, other) if "mac_address" in start}
    return bool(one["session_id"] == other["session_id"]) and len(macs) <= 1


def _reference(session: Any) -> Callable[[], Optional[object]]:
    """Weak where the object allows it: the client never keeps a finished session alive."""
    try:
        return weakref.ref(session)
    except TypeError:
        return lambda: session
