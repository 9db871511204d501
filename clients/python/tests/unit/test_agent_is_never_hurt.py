"""Whatever happens here, the agent does not notice: no exception, no wait, no growth."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, List

import pytest

from chat_history_client import ChatHistoryClient
from support.peer import Archive, Peer, eventually, peer_at
from support.session import Event, Session, close, item, transcript

HERE = Path(__file__).parents[2]


class Panic(BaseException):
    """As a panic in pydantic's core: no Exception."""


class Bomb:
    """Explodes at every touch."""

    def __init__(self, problem: BaseException) -> None:
        object.__setattr__(self, "problem", problem)

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "problem")

    def __repr__(self) -> str:
        raise object.__getattribute__(self, "problem")


@pytest.mark.parametrize("problem", [TypeError("boom"), ValueError("boom"), RecursionError(), MemoryError(), Panic("boom")])
@pytest.mark.parametrize(
    "name", ["conversation_item_added", "user_input_transcribed", "function_tools_executed", "error", "close"]
)
def test_no_exception_leaves_a_listener(path: str, name: str, problem: BaseException) -> None:
    session = Session()

    async def agent() -> ChatHistoryClient:
        client = ChatHistoryClient(path)
        client.attach(session, session_id="room")
        for event in (Bomb(problem), Event(name, item=Bomb(problem)), Event(name, error=Bomb(problem)), object(), None, 7):
            session.emit(name, event)
        session.emit(name)
        session.emit(name, 1, 2, 3)
        await client.aclose(timeout=0.01)
        return client

    client = asyncio.run(agent())
    assert client.stats.errors > 0


def test_an_exception_in_a_listener_is_swallowed_but_a_keyboard_interrupt_is_not(path: str) -> None:
    session = Session()
    client = ChatHistoryClient(path)
    client.attach(session, session_id="room")
    with pytest.raises(KeyboardInterrupt):
        session.emit("close", Bomb(KeyboardInterrupt()))


def test_attach_and_every_other_call_survive_any_argument(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        assert await client.aclose(timeout=0.01)
        await client.on_shutdown()
        assert client.flush_sync(0.01)
        assert client.message(1, "before attach") is False
        assert client.attach(Bomb(TypeError()), mac_address=Bomb(TypeError()), session_id="room") is False
        assert client.attach(Bomb(TypeError()), session_id=Bomb(TypeError())) is False
        assert client.attach(Session(), session_id="") is False
        assert client.attach(Bomb(TypeError()), session_id="room") is True  # nothing to listen to, messages work
        assert client.message(1, Bomb(TypeError())) is False
        assert client.message(1, None, id=object(), timestamp=float("nan"), metadata={"a": {2: object()}}) is True  # type: ignore[arg-type]
        client.stats  # noqa: B018
        await client.aclose(reason=Bomb(TypeError()), timeout=0.01)  # type: ignore[arg-type]

    asyncio.run(agent())


def test_a_broken_logger_does_not_reach_the_agent(path: str) -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise TypeError("a filter of the agent")

    logger = logging.getLogger("chat_history_client")
    broken = Broken()
    logger.addFilter(broken)
    try:
        session = Session()
        client = ChatHistoryClient(path)
        client.attach(session, session_id="room")
        session.emit("close", Bomb(TypeError()))
        assert client.stats.errors >= 2
    finally:
        logger.removeFilter(broken)


def test_nothing_that_was_said_reaches_the_log(path: str, caplog: pytest.LogCaptureFixture) -> None:
    secret = "the-child-said-this"

    class Undumpable(Event):
        def model_dump(self, **_: Any) -> Any:
            raise ValueError(secret)

        def __repr__(self) -> str:
            return secret

    async def agent() -> None:
        client = ChatHistoryClient(path, max_lines=3)
        session = Session()
        client.attach(session, session_id="room")
        for n in range(10):
            session.emit("conversation_item_added", Undumpable("conversation_item_added", item=Bomb(ValueError(secret))))
            client.message(1, secret + str(n), metadata={"k": Bomb(ValueError(secret))})
        await client.aclose(timeout=0.1)

    with caplog.at_level(logging.DEBUG):
        with peer_at(path) as peer:
            peer.answer = lambda line: {
                "type": "error",
                "code": "bad_field",
                "field": "content",
                "message": secret,
                "fatal": True,
            }
            asyncio.run(agent())
        asyncio.run(agent())
    assert caplog.records
    assert secret not in caplog.text


def test_import_and_constructor_do_no_work() -> None:
    code = """
import atexit, os, sys, threading, asyncio, json, random, socket, unicodedata, select, weakref
before = (set(os.listdir("/proc/self/fd")), threading.active_count(), atexit._ncallbacks())
forks = []
os.register_at_fork = lambda **k: forks.append(k)
class NoSocket:
    def __init__(self, *a, **k): raise SystemExit("a socket")
socket.socket = NoSocket
import chat_history_client
clients = [chat_history_client.ChatHistoryClient() for _ in range(100)]
after = (set(os.listdir("/proc/self/fd")), threading.active_count(), atexit._ncallbacks())
assert before == after and not forks, (before, after, forks)
print("idle")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=False)
    assert done.stdout == "idle\n", done.stderr


def test_a_working_client_has_no_thread_and_starts_no_task(path: str) -> None:
    async def agent() -> None:
        threads = set(threading.enumerate())
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        for n in range(100):
            client.message(1, str(n))
        await asyncio.sleep(0.02)
        assert len(asyncio.all_tasks()) == 1
        # the peer's threads are of the test, not of the client
        assert not [t for t in threading.enumerate() if t not in threads and "_serve" not in t.name and "_accept" not in t.name]
        assert await client.aclose(timeout=20)

    with peer_at(path):
        asyncio.run(agent())


def test_memory_is_bounded_in_lines_and_the_oldest_are_dropped_and_reported(path: str) -> None:
    async def agent() -> ChatHistoryClient:
        client = ChatHistoryClient(path, max_lines=50)
        client.attach(None, session_id="room")
        for n in range(200):
            client.message(1, str(n))
            assert client.stats.pending <= 50
        assert client.stats.dropped == 150
        with peer_at(path, archive):
            assert await client.aclose("bye", timeout=20)
        return client

    archive = Archive()
    client = asyncio.run(agent())
    assert archive.contents() == [str(n) for n in range(151, 200)]
    end = archive.all()[-1]
    assert (end["type"], end["reason"], end["dropped"]) == ("session_end", "bye", 151)
    assert (client.stats.enqueued, client.stats.acked, client.stats.dropped, client.stats.pending) == (201, 50, 151, 0)


def test_memory_is_bounded_in_bytes(path: str) -> None:
    client = ChatHistoryClient(path, max_bytes=100_000)
    client.attach(None, session_id="room")
    for n in range(100):
        client.message(1, "%d:" % n + "x" * 10_000)
        assert client.stats.pending_bytes <= 100_000
    assert client.stats.pending == 9
    assert client.stats.dropped == 91
    client.message(1, "y" * 300_000)  # longer than all the room: alone, and still there
    assert client.stats.pending == 1


def test_the_default_bounds_are_two_thousand_lines_and_four_mebibytes(path: str) -> None:
    client = ChatHistoryClient(path)
    client.attach(None, session_id="room")
    for _ in range(2500):
        client.message(1, "short")
    assert client.stats.pending == 2000
    for _ in range(300):
        client.message(1, "x" * 100_000)
    assert 3 << 20 < client.stats.pending_bytes <= 4 << 20


def test_memory_is_bounded_while_another_thread_talks_and_the_loop_is_held(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path, max_lines=100, max_bytes=1_000_000)
        client.attach(None, session_id="room")

        def talk() -> None:
            for _ in range(500):
                client.message(1, "x" * 50_000)
                assert client.stats.pending_bytes <= 2_000_000

        thread = threading.Thread(target=talk)
        thread.start()
        thread.join()  # holds the loop
        await asyncio.sleep(0)
        stats = client.stats
        assert stats.pending_bytes <= 1_000_000
        assert stats.enqueued == 500
        assert stats.enqueued == stats.acked + stats.dropped + stats.pending

    asyncio.run(agent())


def test_what_is_dropped_after_it_was_written_counts_as_dropped_only_if_the_daemon_has_it_not(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path, max_lines=10)
        client.attach(None, session_id="room")
        for n in range(30):
            client.message(1, str(n))
        assert client.stats.dropped == 20
        peer.acks.set()  # it had read them all
        assert await client.aclose(timeout=20)
        assert client.stats.dropped == 0
        assert client.stats.acked == 31

    with peer_at(path) as peer:
        peer.acks.clear()
        asyncio.run(agent())
    assert len(peer.archive.contents()) == 30


def test_a_deaf_daemon_costs_the_agent_nothing_and_no_buffer_but_the_kernels(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        slowest = 0.0
        for n in range(5000):
            began = time.thread_time()  # other processes may take the core, the client may not
            client.message(1, "%d " % n + "x" * 200)
            slowest = max(slowest, time.thread_time() - began)
            if n % 100 == 0:
                await asyncio.sleep(0)
        assert slowest < 0.05
        stats = client.stats
        assert stats.pending == 2000
        assert stats.dropped == 3000
        assert stats.connects == 1
        spins = 0
        began = time.process_time()
        while spins < 20:
            await asyncio.sleep(0.01)
            spins += 1
        assert time.process_time() - began < 0.1, "a full socket must not spin the loop"
        began = time.monotonic()
        assert not await client.aclose(timeout=0.3)
        assert time.monotonic() - began < 1.5

    with peer_at(path) as peer:
        peer.deaf = True
        asyncio.run(agent())


def test_a_backlog_does_not_hold_the_agents_loop(path: str) -> None:
    async def agent() -> float:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        for n in range(1999):
            client.message(1, "%d " % n + "x" * 1900)
        gap = 0.0
        with peer_at(path) as peer:
            closing = asyncio.ensure_future(client.aclose(timeout=30))
            last = time.thread_time()
            while not closing.done():
                await asyncio.sleep(0)
                now = time.thread_time()
                gap = max(gap, now - last)
                last = now
            assert closing.result()
            assert len(peer.archive.contents()) == 1999
        return gap

    assert min(asyncio.run(agent()) for _ in range(3)) < 0.03


@pytest.mark.parametrize("portion", [1, 7, 64])
def test_a_backlog_is_written_in_portions(path: str, monkeypatch: pytest.MonkeyPatch, portion: int) -> None:
    monkeypatch.setattr("chat_history_client._LINES_PER_TURN", portion)

    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        for n in range(300):
            client.message(1, str(n))
        with peer_at(path) as peer:
            assert await client.aclose(timeout=20)
            assert peer.archive.contents() == [str(n) for n in range(300)]

    asyncio.run(agent())


def test_one_turn_of_the_loop_writes_one_portion(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_history_client._LINES_PER_TURN", 7)
    client = ChatHistoryClient(path)
    client.attach(None, session_id="room")
    for n in range(20):
        client.message(1, str(n))
    with peer_at(path):
        client._connect()
        assert len(client._unacked) <= 7
        assert client.stats.pending == 20


def test_a_forked_child_is_silent_and_does_not_keep_the_connection_open(path: str) -> None:
    session = Session()

    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(session, session_id="room")
        session.emit("conversation_item_added", item("from the parent"))
        eventually(lambda: peer.archive.seqs() == [1])
        hold_read, hold_write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(hold_write)
            session.emit("conversation_item_added", item("from the child"))
            ok = client.message(1, "from the child") is False and client.flush_sync(0.1)
            ok = ok and client.stats.enqueued == 1 and client._sock is None
            os.read(hold_read, 1)  # lives on until the parent lets it go
            os._exit(0 if ok else 1)
        os.close(hold_read)
        session.emit("conversation_item_added", item("from the parent again"))
        assert await client.aclose(timeout=20)  # closes the only descriptor that is left
        session.emit("close", close())
        assert await client.aclose(timeout=20)
        eventually(peer.ended.is_set)
        os.close(hold_write)
        _, status = os.waitpid(child, 0)
        assert status == 0

    with peer_at(path) as peer:
        asyncio.run(agent())
    said = [line["item"]["content"][0] for line in peer.archive.all() if line["type"] == "conversation_item_added"]
    assert said == ["from the parent", "from the parent again"]


def test_a_client_made_before_a_fork_serves_parent_and_child_as_two_streams(path: str) -> None:
    client = ChatHistoryClient(path)

    async def talk(who: str) -> bool:
        client.attach(None, session_id="room-" + who)
        for n in range(10):
            client.message(1, "%s %d" % (who, n))
        return await client.aclose(timeout=20)

    with peer_at(path) as peer:
        client.attach(None, session_id="room-parent")
        child = os.fork()
        if child == 0:
            os._exit(0 if asyncio.run(talk("child")) else 1)
        assert asyncio.run(talk("parent"))
        assert os.waitpid(child, 0)[1] == 0
    by_session = {start["session_id"]: peer.archive.lines[start["stream"]] for start in peer.archive.starts}
    for who in ("parent", "child"):
        assert [line.get("content") for line in by_session["room-" + who][:-1]] == ["%s %d" % (who, n) for n in range(10)]


def test_a_client_follows_from_one_loop_to_the_next(path: str) -> None:
    client = ChatHistoryClient(path)

    async def talk(turn: int) -> None:
        client.attach(None, session_id="room")
        for n in range(5):
            client.message(1, "%d.%d" % (turn, n))
            await asyncio.sleep(0)

    async def end() -> None:
        assert await client.aclose(timeout=20)

    with peer_at(path) as peer:
        for turn in range(3):
            asyncio.run(talk(turn))
        asyncio.run(end())
        assert peer.archive.contents() == ["%d.%d" % (turn, n) for turn in range(3) for n in range(5)]
        assert peer.connections == 1


def test_a_waiting_reconnect_follows_to_the_next_loop_too(path: str) -> None:
    client = ChatHistoryClient(path)

    async def talk() -> None:
        client.attach(None, session_id="room")
        client.message(1, "into the void")

    async def only_wait() -> None:
        client.message(1, "still void")
        with peer_at(path, archive):
            for _ in range(400):
                await asyncio.sleep(0.01)
                if len(archive.contents()) == 2:
                    return

    archive = Archive()
    asyncio.run(talk())
    asyncio.run(only_wait())
    assert archive.contents() == ["into the void", "still void"]


def test_other_threads_and_other_loops_may_call(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "first")
        problems: List[str] = []

        def from_thread() -> None:
            if not client.message(1, "from a thread"):
                problems.append("message")
            if not client.flush_sync(5.0):
                problems.append("flush_sync")

            async def elsewhere() -> None:
                client.message(1, "from another loop")
                if not await client.aclose("elsewhere", timeout=20):
                    problems.append("aclose")

            asyncio.run(elsewhere())

        thread = threading.Thread(target=from_thread)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.005)
        assert problems == []

    with peer_at(path) as peer:
        asyncio.run(agent())
    assert peer.archive.contents() == ["first", "from a thread", "from another loop"]
    assert peer.archive.kinds()[-1] == "session_end"


def test_without_any_loop_it_works_too(path: str) -> None:
    client = ChatHistoryClient(path)
    with peer_at(path) as peer:
        client.attach(None, session_id="room")
        for n in range(1000):
            client.message(1, str(n))
        assert client.flush_sync(5.0)
        assert peer.archive.contents() == [str(n) for n in range(1000)]
        assert client.stats.pending == 0


def _talk_at_once(client: ChatHistoryClient, threads: int, lines: int) -> List[str]:
    """Several threads speak at the same time, and switch as often as the interpreter lets them."""
    began = threading.Barrier(threads)
    refused: List[str] = []

    def talk(who: int) -> None:
        began.wait()
        for n in range(lines):
            if not client.message(1, "%d.%d" % (who, n)):
                refused.append("%d.%d" % (who, n))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        talking = [threading.Thread(target=talk, args=(who,)) for who in range(threads)]
        for thread in talking:
            thread.start()
        for thread in talking:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return refused


def _assert_each_line_arrived_once(peer: Peer, threads: int, lines: int) -> None:
    arrived = [json.loads(line) for line in peer.raw.split(b"\n")[:-1]]  # no line is mangled
    assert [line["seq"] for line in arrived if "seq" in line] == list(range(1, threads * lines + 1))
    said = [line["content"] for line in arrived if line["type"] == "message"]
    for who in range(threads):
        assert [text for text in said if text.startswith("%d." % who)] == ["%d.%d" % (who, n) for n in range(lines)]
    assert len(said) == threads * lines


def test_without_any_loop_several_threads_may_speak_at_once(path: str) -> None:
    client = ChatHistoryClient(path, max_lines=5000)
    with peer_at(path) as peer:
        client.attach(None, session_id="room")
        assert _talk_at_once(client, threads=4, lines=500) == []
        assert client.flush_sync(20)
    _assert_each_line_arrived_once(peer, threads=4, lines=500)
    assert (client.stats.enqueued, client.stats.acked, client.stats.errors) == (2000, 2000, 0)
    assert peer.connections == 1


def test_beside_a_loop_that_does_not_run_several_threads_may_speak_at_once(path: str) -> None:
    async def attach() -> None:
        client.attach(None, session_id="room")

    async def listen() -> None:
        while client.stats.pending:
            await asyncio.sleep(0.005)

    client = ChatHistoryClient(path, max_lines=5000)
    loop = asyncio.new_event_loop()
    with peer_at(path) as peer:
        loop.run_until_complete(attach())
        assert _talk_at_once(client, threads=4, lines=500) == []
        loop.run_until_complete(asyncio.wait_for(listen(), 20))  # it owns the connection again, without another call
        loop.close()
    _assert_each_line_arrived_once(peer, threads=4, lines=500)
    assert (client.stats.acked, client.stats.errors) == (2000, 0)


def test_threads_may_speak_while_loops_come_and_go(path: str) -> None:
    async def turn(n: int) -> None:
        client.message(2, "loop.%d" % n)
        await asyncio.sleep(0.001)

    client = ChatHistoryClient(path, max_lines=5000)
    refused: List[str] = []
    with peer_at(path) as peer:
        client.attach(None, session_id="room")
        talking = threading.Thread(target=lambda: refused.extend(_talk_at_once(client, threads=3, lines=500)))
        talking.start()
        turns = 0
        while talking.is_alive() or turns < 5:
            asyncio.run(turn(turns))
            turns += 1
        assert client.flush_sync(20)
    assert refused == []
    arrived = [json.loads(line) for line in peer.raw.split(b"\n")[1:-1]]
    assert [line["seq"] for line in arrived] == list(range(1, 1500 + turns + 1))
    assert [line["content"] for line in arrived if line["chat_type"] == 2] == ["loop.%d" % n for n in range(turns)]
    assert client.stats.errors == 0


def test_threads_may_speak_flush_and_end_while_the_daemon_is_replaced(path: str) -> None:
    client = ChatHistoryClient(path, max_lines=5000)
    archive = Archive()
    first = Peer(path, archive).start()
    client.attach(None, session_id="room")
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            client.flush_sync(0.01)
            stats = client.stats
            assert stats.enqueued == stats.acked + stats.dropped + stats.pending

    flushing = [threading.Thread(target=flush) for _ in range(2)]
    for thread in flushing:
        thread.start()
    assert _talk_at_once(client, threads=2, lines=300) == []
    first.kill()
    with peer_at(path, archive):
        client.message(1, "0.300")
        assert client.flush_sync(20)
        endings: List[bool] = []
        ending = [
            threading.Thread(target=lambda: endings.append(asyncio.run(client.aclose("bye", timeout=20)))) for _ in range(3)
        ]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join()
        done.set()
        for thread in flushing:
            thread.join()
    assert endings == [True, True, True]
    assert archive.seqs() == list(range(1, 603))
    assert archive.kinds().count("session_end") == 1
    assert client.stats.errors == 0


def test_a_signal_handler_in_the_middle_of_a_line_waits_for_nothing_and_its_own_line_follows(path: str) -> None:
    class Interrupted(ChatHistoryClient):
        def _make_room(self, size: int) -> None:  # the line has its number, and stands in no queue yet
            if not said:
                said.append(True)
                said.append(self.message(1, "from the handler"))
            super()._make_room(size)

    said: List[bool] = []
    with peer_at(path) as peer:
        client = Interrupted(path)
        client.attach(None, session_id="room")
        client.message(1, "interrupted")
        assert client.flush_sync(5)
    assert said == [True, True]
    assert peer.archive.contents() == ["interrupted", "from the handler"]
    assert peer.archive.seqs() == [1, 2]


def test_a_handler_of_the_log_may_wait_for_a_thread_that_speaks(path: str) -> None:
    class Waiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            speaker = threading.Thread(target=client.message, args=(1, "meanwhile"))
            speaker.start()
            speaker.join(10)
            waited.append(speaker.is_alive())

    waited: List[bool] = []
    logger, handler = logging.getLogger("chat_history_client"), Waiting()
    client = ChatHistoryClient(path)
    logger.addHandler(handler)
    try:
        client.attach(None, session_id="room")  # nobody is there, and the log says so
    finally:
        logger.removeHandler(handler)
    assert waited == [False]
    assert client.stats.pending == 1


def test_a_child_forked_while_another_thread_speaks_is_not_held_up(path: str) -> None:
    client = ChatHistoryClient(path)
    client.attach(None, session_id="room")
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with client._hold():
            inside.set()
            leave.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        ok = client.message(1, "no") is False and client.attach(None, session_id="room") and client.message(1, "of the child")
        os._exit(0 if ok and client.stats.pending == 1 else 1)
    leave.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


def test_a_finished_session_is_not_kept_alive(path: str) -> None:
    import gc
    import weakref

    client = ChatHistoryClient(path)
    session = Session()
    client.attach(session, session_id="room")
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None


def test_descriptors_return_to_where_they_were(path: str) -> None:
    async def agent() -> None:
        session = Session()
        client = ChatHistoryClient(path)
        client.attach(session, session_id="room")
        session.emit("conversation_item_added", item("hello"))
        session.emit("close", close())
        assert await client.aclose(timeout=20)

    with peer_at(path) as peer:
        asyncio.run(agent())
        eventually(peer.ended.is_set)
        before = len(os.listdir("/proc/self/fd")) - peer.connections
        for _ in range(20):
            asyncio.run(agent())
        assert len(os.listdir("/proc/self/fd")) - peer.connections <= before


def test_a_second_conversation_is_refused_while_the_first_lives_and_served_after_it(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        assert client.attach(None, mac_address="68:25:dd:ba:39:78", session_id="one")
        assert client.attach(None, mac_address="6825DDBA3978", session_id="one")  # the same, differently written
        client.message(1, "in one")
        assert client.attach(None, session_id="two") is False
        assert await client.aclose(timeout=20)
        assert client.attach(None, session_id="two")
        client.message(1, "in two")
        assert await client.aclose(timeout=20)

    with peer_at(path) as peer:
        asyncio.run(agent())
    streams = {start["session_id"]: start["stream"] for start in peer.archive.starts}
    assert [line.get("content") for line in peer.archive.lines[streams["one"]]] == ["in one", None]
    assert [line.get("content") for line in peer.archive.lines[streams["two"]]] == ["in two", None]
    assert streams["one"] != streams["two"]


def test_attaching_a_session_twice_does_not_double_its_lines(path: str) -> None:
    async def agent() -> None:
        session = Session()
        client = ChatHistoryClient(path)
        client.attach(session, session_id="room")
        client.attach(session, session_id="room")
        session.emit("conversation_item_added", item("once"))
        session.emit("close", close())
        assert await client.aclose(timeout=20)

    with peer_at(path) as peer:
        asyncio.run(agent())
    assert peer.archive.kinds() == ["conversation_item_added", "close", "session_end"]


def test_a_daemon_that_talks_nonsense_is_survived(path: str) -> None:
    async def agent() -> ChatHistoryClient:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "hello")
        for nonsense in (
            b"\n\n\xff\xfe\n",
            b"[]\n7\nnull\n",
            b"[" * 100_000 + b"\n",
            b'{"type":"ack"}\n{"type":"ack","seq":"x"}\n{"type":"ack","seq":null}\n{"type":"ack","seq":-5}\n',
            b'{"type":"error"}\n{"type":"error","code":["%s"],"field":{},"seq":1}\n{"type":7}\n',
            b'{"type":"ready"}\n{"type":"ready","last_seq":"x","max_line_bytes":-1}\n',
            b'{"type":"ack","seq":1e400}\n{"type":"ack","seq":99999999999999999999999}\n',
            b"x" * 300_000,
        ):
            for sock in list(peer._connections):
                with contextlib.suppress(OSError):
                    await asyncio.get_running_loop().run_in_executor(None, sock.sendall, nonsense)
            client.message(1, "more")
            await asyncio.sleep(0.08)
        return client

    with peer_at(path) as peer:
        peer.acks.clear()
        client = asyncio.run(agent())
    assert len(client._in) < 80_000, "an answer without end is not collected"
    stats = client.stats
    assert stats.enqueued == 9
    assert stats.enqueued == stats.acked + stats.dropped + stats.pending
    assert stats.errors == 0


@pytest.mark.parametrize("problem", [errno.EMFILE, errno.ENOBUFS, errno.EACCES])
def test_a_system_that_refuses_sockets_is_survived(path: str, monkeypatch: pytest.MonkeyPatch, problem: int) -> None:
    real = socket.socket

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(problem, os.strerror(problem))

    async def agent() -> None:
        client = ChatHistoryClient(path)
        monkeypatch.setattr("chat_history_client.socket.socket", refuse)
        assert client.attach(None, session_id="room")
        client.message(1, "kept")
        monkeypatch.setattr("chat_history_client.socket.socket", real)
        assert await client.aclose(timeout=20)

    with peer_at(path) as peer:
        # asyncio needs sockets of its own, so the loop is there before the refusal
        asyncio.run(agent())
    assert peer.archive.contents() == ["kept"]


def test_a_vanished_reader_raises_no_signal(path: str) -> None:
    """Python ignores SIGPIPE; an embedding agent may not."""
    code = """
import signal, sys, time
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
sys.path[:0] = [%r, %r]
from chat_history_client import ChatHistoryClient
from support.peer import Peer
peer = Peer(%r).start()
client = ChatHistoryClient(%r)
client.attach(None, session_id="room")
peer.kill()
for n in range(50): client.message(1, "x" * 10000)
print("alive", flush=True)
""" % (str(HERE), str(HERE / "tests"), path, path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_the_shutdown_takes_three_seconds_at_most_whatever_is_wrong(path: str) -> None:
    async def agent(session: Any) -> float:
        client = ChatHistoryClient(path)
        client.attach(session, session_id="room")
        client.message(1, "unheard")
        began = time.monotonic()
        await client.on_shutdown("gone")  # no close event, and nobody answers
        return time.monotonic() - began

    assert 1.4 < asyncio.run(agent(Session())) < 3.4
    with peer_at(path) as peer:
        peer.deaf = True
        assert asyncio.run(agent(Session())) < 3.4


def test_what_the_client_could_not_deliver_is_given_up_after_a_minute(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_history_client._LINGER", 0.2)

    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "unheard")
        assert not await client.aclose(timeout=0.1)
        assert client.stats.pending == 2
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if client.stats.pending == 0:
                break
        assert client.stats.dropped == 2
        assert client._retry_timer is None

    asyncio.run(agent())


def test_the_listener_leaves_the_event_as_it_was(path: str) -> None:
    event = item(["a", {"type": "image_content", "image": "x" * 10}])
    before = json.dumps(event.model_dump(mode="json"))
    session = Session()
    client = ChatHistoryClient(path)
    client.attach(session, session_id="room")
    session.emit("conversation_item_added", event)
    assert json.dumps(event.model_dump(mode="json")) == before


def test_interims_cost_no_line(path: str) -> None:
    session = Session()
    client = ChatHistoryClient(path)
    client.attach(session, session_id="room")
    for n in range(100):
        session.emit("user_input_transcribed", transcript("word " * n, is_final=False))
    assert client.stats.enqueued == 0


def test_a_stopped_process_does_not_block_the_agent(path: str) -> None:
    """SIGSTOP, as a debugger or a cgroup freezer does it."""
    code = """
import sys; sys.path[:0] = [%r, %r]
from support.peer import Peer
Peer(%r).start(); print("up", flush=True); sys.stdin.read()
""" % (str(HERE), str(HERE / "tests"), path)
    daemon = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert daemon.stdout is not None
        daemon.stdout.readline()

        async def agent() -> None:
            client = ChatHistoryClient(path)
            client.attach(None, session_id="room")
            client.message(1, "before")
            os.kill(daemon.pid, signal.SIGSTOP)
            began = time.monotonic()
            for _ in range(1500):
                client.message(1, "x" * 300)
                await asyncio.sleep(0)
            assert time.monotonic() - began < 8
            os.kill(daemon.pid, signal.SIGCONT)
            assert await client.aclose(timeout=10)
            assert client.stats.acked == 1502

        asyncio.run(agent())
    finally:
        daemon.kill()
        daemon.wait()


def test_peer_is_a_real_judge(path: str) -> None:
    """The scripted daemon forgets what it did not acknowledge: otherwise no test here could fail."""
    archive = Archive()
    peer = Peer(path, archive).start()
    peer.acks.clear()
    client = ChatHistoryClient(path)
    client.attach(None, session_id="room")
    client.message(1, "read, not durable")
    eventually(lambda: len(peer.read) == 2)
    peer.kill()
    assert archive.all() == []
