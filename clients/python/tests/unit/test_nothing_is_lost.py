"""What can be kept is kept: absent, killed, stalled and replaced daemons, killed agents, late last words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, List, Tuple

import pytest

from chat_history_client import ChatHistoryClient, default_socket_paths
from support.peer import Archive, Peer, eventually, peer_at
from support.session import Session, close, item, transcript

HERE = Path(__file__).parents[2]


def numbers(count: int, start: int = 0) -> List[str]:
    return [str(n) for n in range(start, start + count)]


def contiguous(archive: Archive) -> bool:
    return archive.seqs() == list(range(1, len(archive.seqs()) + 1))


def test_a_line_is_with_the_kernel_before_the_listener_returns(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    async def agent() -> None:
        session = Session()
        client = ChatHistoryClient(path)
        client.attach(session, session_id="room")
        there, _ = listener.accept()
        there.setblocking(False)
        for n in range(20):
            session.emit("conversation_item_added", item("sentence %d" % n))
            # no await since: nothing but the listener itself can have written this
            assert b'"sentence %d"' % n in there.recv(65536)
        there.close()

    asyncio.run(agent())
    listener.close()


def test_an_agent_killed_right_after_its_sentence_loses_nothing(path: str) -> None:
    code = """
        import asyncio, os, signal, sys
        sys.path[:0] = [%r, %r]
        from chat_history_client import ChatHistoryClient
        from support.session import Session, item
        async def agent():
            session, client = Session(), ChatHistoryClient(%r)
            client.attach(session, session_id="room")
            for n in range(100):
                session.emit("conversation_item_added", item(str(n)))
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(agent())
    """ % (str(HERE), str(HERE / "tests"), path)
    with peer_at(path) as peer:
        peer.deaf = True
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        peer.deaf = False
        eventually(lambda: len(peer.archive.all()) == 100)
    assert [line["item"]["content"][0] for line in peer.archive.all()] == numbers(100)


def test_the_first_connection_is_made_in_attach_and_introduces_itself(path: str) -> None:
    with peer_at(path) as peer:
        client = ChatHistoryClient(path)
        client.attach(None, mac_address="68-25-DD-BA-39-78", session_id=" uuid_6825ddba3978_conversation ", agent_id="agent")
        eventually(lambda: peer.archive.starts)
    start = peer.archive.starts[0]
    assert len(start.pop("stream")) == 32
    assert start.pop("client").startswith("chat_history_client.py/")
    assert start == {
        "type": "session_start",
        "v": 1,
        "mac_address": "68:25:dd:ba:39:78",
        "session_id": "uuid_6825ddba3978_conversation",
        "agent_id": "agent",
        "ack": True,
    }


@pytest.mark.parametrize(
    ("mac", "room", "sent"),
    [
        ("68:25:DD:BA:39:78", "room", "68:25:dd:ba:39:78"),
        ("6825ddba3978", "room", "68:25:dd:ba:39:78"),
        (None, "u_6825ddba3978_story", None),
        ("", "u_6825ddba3978", None),
        ("unknown", "u_6825ddba3978_conversation", None),
        ("unknown", "room", "unknown"),  # the daemon says so, and the log names the field
        (None, "room", ""),
    ],
)
def test_an_odd_mac_is_left_to_the_room_name(path: str, mac: Any, room: str, sent: Any) -> None:
    with peer_at(path) as peer:
        ChatHistoryClient(path).attach(None, mac_address=mac, session_id=room)
        eventually(lambda: peer.archive.starts)
    assert peer.archive.starts[0].get("mac_address") == sent


def test_a_daemon_that_is_there_gets_every_line_once(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        for n in range(1000):
            client.message(1, str(n))
            if n % 10 == 0:
                await asyncio.sleep(0)
        assert await client.aclose(timeout=20)
        assert client.stats[:4] == (1001, 1001, 0, 0)

    with peer_at(path) as peer:
        asyncio.run(agent())
    assert peer.archive.contents() == numbers(1000)
    assert contiguous(peer.archive)
    assert len(peer.read) == 1002


def test_a_daemon_that_comes_late_gets_every_line_once(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        for n in range(600):
            client.message(1, str(n))
            await asyncio.sleep(0.001)
            if n == 400:
                peer.start()
        assert await client.aclose(timeout=20)

    peer = Peer(path)
    asyncio.run(agent())
    peer.kill()
    assert peer.archive.contents() == numbers(600)
    assert contiguous(peer.archive)


def test_a_daemon_killed_twice_gets_every_line_once_and_in_order(path: str) -> None:
    archive = Archive()

    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        peer = Peer(path, archive).start()
        for n in range(300):
            client.message(1, str(n))
            await asyncio.sleep(0.002)
            if n in (95, 195):
                peer.acks.clear()  # the last five were read and never made durable
            if n in (100, 200):
                peer.kill()
                peer = Peer(path, archive).start()
        assert await client.aclose(timeout=20)
        assert client.stats.connects >= 3
        peer.kill()

    asyncio.run(agent())
    assert archive.contents() == numbers(300)
    assert contiguous(archive)


def test_after_a_reconnect_it_resumes_at_the_line_after_the_last_durable_one(path: str) -> None:
    archive = Archive()

    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        first = Peer(path, archive).start()
        for n in range(5):
            client.message(1, str(n))
        await until(lambda: archive.seqs() == [1, 2, 3, 4, 5])
        first.acks.clear()
        for n in range(5, 10):
            client.message(1, str(n))
        await until(lambda: len(first.read) == 11)
        first.kill()
        # two of them were durable after all, only the acknowledgement was lost
        archive.commit(next(iter(archive.lines)), first.read[6:8])
        second = Peer(path, archive).start()
        assert await client.aclose(timeout=20)
        second.kill()
        assert second.read[0] == first.read[0], "the same stream again"
        assert [line["seq"] for line in second.read[1:]] == [8, 9, 10, 11]

    asyncio.run(agent())
    assert contiguous(archive)


def test_after_a_reconnect_it_waits_for_ready_before_it_sends(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "0")
        await until(lambda: client.stats.acked == 1)
        first.kill()
        second = Peer(path, first.archive)
        second.greets = False
        second.start()
        client.message(1, "1")
        await until(lambda: len(second.read) == 1)
        client.message(1, "2")
        await asyncio.sleep(0.05)
        assert [line["type"] for line in second.read] == ["session_start"]
        second.say({"type": "ready", "last_seq": 1})
        assert await client.aclose(timeout=20)
        second.kill()

    first = Peer(path).start()
    asyncio.run(agent())
    assert first.archive.contents() == numbers(3)


def test_an_acknowledgement_of_what_was_never_sent_discards_nothing(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "0")
        await until(lambda: client.stats.acked == 1)
        first.kill()
        second = Peer(path, first.archive)
        second.greets = False
        second.start()
        client.message(1, "1")
        await until(lambda: len(second.read) == 1)
        second.say({"type": "ack", "seq": 1_000_000})
        await asyncio.sleep(0.05)
        assert client.stats.pending == 1
        second.say({"type": "ready", "last_seq": 1_000_000})
        assert await client.aclose(timeout=20)
        second.kill()

    first = Peer(path).start()
    asyncio.run(agent())
    assert first.archive.contents() == numbers(2)


def test_a_backlog_goes_out_even_if_no_acknowledgement_comes(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        for n in range(500):
            client.message(1, str(n))
        with peer_at(path) as peer:
            peer.acks.clear()
            await until(lambda: len(peer.read) == 501)
            assert client.stats.acked == 0

    asyncio.run(agent())


def test_what_was_dropped_and_died_with_a_connection_is_counted_as_lost(path: str) -> None:
    archive = Archive()

    async def agent() -> None:
        client = ChatHistoryClient(path, max_lines=10)
        client.attach(None, session_id="room")
        for n in range(30):
            client.message(1, str(n))
        await until(lambda: len(first.read) == 31)
        first.kill()  # it had read them all and made none durable
        with peer_at(path, archive):
            assert await client.aclose(timeout=20)
        assert len(archive.all()) == 10
        assert (client.stats.acked, client.stats.dropped) == (10, 21)
        assert archive.all()[-1]["dropped"] == 21

    first = Peer(path, archive)
    first.acks.clear()
    first.start()
    asyncio.run(agent())


def test_what_was_dropped_and_is_in_the_daemons_memory_is_not_counted_as_lost(path: str) -> None:
    archive = Archive()

    async def agent() -> None:
        client = ChatHistoryClient(path, max_lines=10)
        client.attach(None, session_id="room")
        for n in range(30):
            client.message(1, str(n))
        await until(lambda: len(first.read) == 31)
        first.kill()  # the connection alone: its disk fails, and what it read is in its memory
        with peer_at(path, archive) as second:
            second.acks.clear()
            second.taken_seq = 25
            await until(lambda: len(second.read) == 11)  # the introduction, and what is still here
            assert second.read[1]["seq"] == 21
            assert client.stats.dropped == 20
            client.message(1, "30")  # there is no room for it but that of 21, which is in the daemon's memory, too
            await until(lambda: len(second.read) == 12)
            archive.commit(first.read[0]["stream"], first.read[1:26])
            second.acks.set()  # the disk works again
            assert await client.aclose(timeout=20)
        assert len(archive.all()) == 32
        assert (client.stats.acked, client.stats.dropped) == (32, 0)

    first = Peer(path, archive)
    first.acks.clear()
    first.start()
    asyncio.run(agent())


def test_without_a_loop_memory_is_freed_as_acknowledgements_come(path: str) -> None:
    client = ChatHistoryClient(path)
    with peer_at(path) as peer:
        client.attach(None, session_id="room")
        for n in range(10):
            client.message(1, str(n))
        eventually(lambda: len(peer.archive.contents()) == 10)
        time.sleep(0.02)  # the acknowledgement is on its way
        for n in range(10, 14):
            client.message(1, str(n))
        assert client.stats.acked >= 10


def test_a_daemon_that_lost_its_store_gets_what_is_still_here(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "acked, then lost by the daemon")
        await until(lambda: client.stats.acked == 1)
        first.acks.clear()
        client.message(1, "kept")
        await until(lambda: len(first.read) == 3)
        first.kill()
        second = Peer(path, Archive()).start()
        assert await client.aclose(timeout=20)
        second.kill()
        assert second.archive.contents() == ["kept"]

    first = Peer(path).start()
    asyncio.run(agent())


def test_a_stalled_daemon_gets_what_memory_held(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        for n in range(5000):
            client.message(1, "%d " % n + "x" * 200)
        assert client.stats.dropped == 3000
        peer.deaf = False
        assert await client.aclose(timeout=10)
        # those that were dropped here but had reached the kernel arrived after all
        arrived = [int(content.split()[0]) for content in peer.archive.contents()]
        assert arrived == sorted(set(arrived))
        assert arrived[-1999:] == list(range(3001, 5000))
        assert client.stats.dropped == 5000 - len(arrived)
        assert peer.archive.all()[-1]["dropped"] >= client.stats.dropped

    with peer_at(path) as peer:
        peer.deaf = True
        asyncio.run(agent())


def test_a_replaced_socket_is_found_by_its_path_even_when_the_old_daemon_hangs(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_history_client._STALL_CHECK", 0.05)

    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "0")
        await until(lambda: client.stats.acked == 1)
        hung.deaf = True
        await asyncio.sleep(0.02)
        client.message(1, "1")
        client.message(1, "2")
        await asyncio.sleep(0.2)
        assert client.stats.connects == 1, "a daemon that only stalls is waited for"
        fresh = Peer(path, hung.archive).start()
        client.message(1, "3")
        assert await client.aclose(timeout=20)
        assert client.stats.connects == 2
        fresh.kill()

    hung = Peer(path).start()
    asyncio.run(agent())
    hung.kill()
    assert hung.archive.contents() == numbers(4)


def test_retries_begin_at_fifty_milliseconds_end_at_five_seconds_and_are_jittered(path: str) -> None:
    delays: List[float] = []

    async def agent() -> None:
        client = ChatHistoryClient(path)
        loop = asyncio.get_running_loop()
        real = loop.call_later

        def call_later(delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
            if any(getattr(called, "__name__", "") == "_on_retry" for called in (callback, *args)):
                delays.append(delay)
                delay = 0
            return real(delay, callback, *args)

        loop.call_later = call_later  # type: ignore[method-assign, assignment]
        client.attach(None, session_id="room")
        while len(delays) < 60:
            await asyncio.sleep(0)
        client._stop_retrying()

    asyncio.run(agent())
    assert 0.03 <= delays[0] <= 0.05
    assert all(0.6 * bound <= delay <= bound for delay, bound in zip(delays, [min(5.0, 0.05 * 2**n) for n in range(60)]))
    assert len({round(delay, 6) for delay in delays[10:]}) > 40


def test_the_retries_start_small_again_after_something_was_delivered_and_not_before(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "overloads")
        await until(lambda: client.stats.connects == 3)
        assert client._attempt >= 2, "a connection alone is no progress"
        peer.answer = lambda line: None
        await until(lambda: client.stats.acked == 1)
        assert client._attempt == 0

    with peer_at(path) as peer:
        peer.answer = lambda line: (
            None
            if line["type"] == "session_start"
            else {"type": "error", "code": "overloaded", "seq": line["seq"], "fatal": True}
        )
        asyncio.run(agent())


def test_an_overloaded_daemon_gets_the_line_again(path: str) -> None:
    refusals = [0]

    def overloaded(line: Any) -> Any:
        if line.get("content") == "2" and refusals[0] < 3:
            refusals[0] += 1
            return {"type": "error", "code": "overloaded", "message": "full", "seq": line["seq"], "fatal": True}
        return None

    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        for n in range(5):
            client.message(1, str(n))
        assert await client.aclose(timeout=20)
        assert client.stats.refused == 3

    with peer_at(path) as peer:
        peer.answer = overloaded
        asyncio.run(agent())
    assert peer.archive.contents() == numbers(5)


def test_a_refused_line_is_settled_and_does_not_come_again(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(3, "refused")
        client.message(1, "taken")
        assert await client.aclose(timeout=20)
        assert client.stats.refused == 1

    with peer_at(path) as peer:
        peer.answer = lambda line: (
            {"type": "error", "code": "bad_field", "field": "chat_type", "seq": 1, "fatal": False}
            if line.get("chat_type") == 3
            else None
        )
        asyncio.run(agent())
    assert peer.archive.contents() == ["taken"]
    assert len(peer.read) == 4


def test_a_refused_introduction_loses_no_line(path: str, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(line: Any) -> Any:
        if line["type"] == "session_start":
            return {"type": "error", "code": "bad_field", "field": "mac_address", "message": "…", "fatal": False}
        return {"type": "error", "code": "not_bound", "seq": line["seq"], "fatal": False}

    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, mac_address="nonsense", session_id="room")
        client.message(1, "kept")
        await until(lambda: client.stats.refused >= 1)
        await asyncio.sleep(0.05)
        assert client.stats.pending == 1
        assert client.stats.connects == 1, "not asked again at once"
        peer.answer = lambda line: None
        assert await client.aclose(timeout=20)

    with peer_at(path) as peer:
        peer.answer = refuse
        asyncio.run(agent())
    assert peer.archive.contents() == ["kept"]
    assert "bad_field for mac_address" in caplog.text


def test_a_fatal_answer_ends_the_connection_even_if_the_daemon_is_slow_to_close_it(path: str) -> None:
    def overloaded_once(line: Any) -> Any:
        if line["type"] != "session_start" and peer.connections == 1:  # and reads no further there
            return b'{"type":"error","code":"overloaded","seq":1,"fatal":true}\n'  # bytes: the peer does not close
        return None

    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "kept")
        assert await client.aclose(timeout=20)
        assert client.stats.connects == 2

    with peer_at(path) as peer:
        peer.answer = overloaded_once
        asyncio.run(agent())
    assert peer.archive.contents()[-1:] == ["kept"]


def test_a_full_daemon_is_asked_again(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "kept")
        await until(lambda: client.stats.connects == 3)
        peer.answer = lambda line: None
        assert await client.aclose(timeout=20)

    with peer_at(path) as peer:
        peer.answer = lambda line: {"type": "error", "code": "too_many_connections", "fatal": True}
        asyncio.run(agent())
    assert peer.archive.contents() == ["kept"]


def test_a_daemon_that_drains_is_left_and_its_successor_found(path: str) -> None:
    archive = Archive()

    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "0")
        await until(lambda: client.stats.acked == 1)
        old.say({"type": "draining"})
        client.message(1, "1")
        await until(lambda: client.stats.acked == 2)
        old.acks.clear()
        client.message(1, "2")
        old.kill()
        new = Peer(path, archive).start()
        assert await client.aclose(timeout=20)
        new.kill()

    old = Peer(path, archive).start()
    asyncio.run(agent())
    assert archive.contents() == numbers(3)


def test_a_session_that_ended_without_its_close_event_is_still_followed(path: str) -> None:
    """On 1.2.x the shutdown callbacks run beside the session's close, which may take longer than we may."""

    async def agent() -> None:
        session, client = Session(), ChatHistoryClient(path)
        client.attach(session, session_id="room")
        session.emit("conversation_item_added", item("hello"))
        began = time.monotonic()
        await client.on_shutdown("job")
        assert 1.4 < time.monotonic() - began < 2.9
        session.emit("conversation_item_added", item("the last words"))
        session.emit("close", close())
        await until(lambda: client.stats.pending == 0)

    with peer_at(path) as peer:
        asyncio.run(agent())
    assert peer.archive.kinds() == [
        "conversation_item_added",
        "session_end",
        "conversation_item_added",
        "close",
        "session_end",
    ]


def test_what_was_dropped_is_told_once_although_the_session_ends_twice(path: str) -> None:
    async def agent() -> int:
        session, client = Session(), ChatHistoryClient(path, max_lines=5)
        client.attach(session, session_id="room")
        for n in range(10):
            client.message(1, str(n))
        with peer_at(path, archive):
            await until(lambda: client.stats.pending == 0)
            await client.on_shutdown("job")
            session.emit("conversation_item_added", item("the last words"))
            session.emit("close", close())
            await until(lambda: client.stats.pending == 0)
        return client.stats.dropped

    archive = Archive()
    assert asyncio.run(agent()) == 5
    assert [line["dropped"] for line in archive.all() if line["type"] == "session_end"] == [5, 0]


def test_what_a_dropped_end_told_is_told_by_the_next_one(path: str) -> None:
    async def agent() -> int:
        client = ChatHistoryClient(path, max_lines=5)
        client.attach(None, session_id="room")
        for n in range(10):
            client.message(1, str(n))
        assert not await client.aclose(timeout=0.01)
        for n in range(10, 20):
            client.message(1, str(n))
        with peer_at(path, archive):
            assert await client.aclose(timeout=20)
        return client.stats.dropped

    archive = Archive()
    assert asyncio.run(agent()) == 17
    assert [line["dropped"] for line in archive.all() if line["type"] == "session_end"] == [17]


def test_on_shutdown_waits_for_the_close_event_before_it_ends_the_session(path: str) -> None:
    async def agent() -> None:
        session, client = Session(), ChatHistoryClient(path)
        client.attach(session, session_id="room")

        async def framework() -> None:
            await asyncio.sleep(0.3)
            session.emit("conversation_item_added", item("cut off by the ha", role="assistant", interrupted=True))
            session.emit("close", close())

        began = time.monotonic()
        await asyncio.gather(client.on_shutdown("room disconnected"), framework())
        assert time.monotonic() - began < 1.4, "no longer than needed"

    with peer_at(path) as peer:
        asyncio.run(agent())
        assert peer.archive.kinds() == ["conversation_item_added", "close", "session_end"]
        assert peer.archive.all()[-1]["reason"] == "room disconnected"
        eventually(peer.ended.is_set)


def test_a_session_that_is_closed_already_ends_at_once(path: str) -> None:
    async def agent() -> float:
        session, client = Session(), ChatHistoryClient(path)
        client.attach(session, session_id="room")
        session.emit("close", close())
        began = time.monotonic()
        await client.on_shutdown()
        return time.monotonic() - began

    with peer_at(path):
        assert asyncio.run(agent()) < 1.0


def test_on_shutdown_waits_for_the_acknowledgement(path: str) -> None:
    async def agent() -> None:
        session, client = Session(), ChatHistoryClient(path)
        client.attach(session, session_id="room")
        session.emit("close", close())
        asyncio.get_running_loop().call_later(0.4, peer.acks.set)
        began = time.monotonic()
        await client.on_shutdown()
        assert time.monotonic() - began > 0.35
        assert client.stats.pending == 0

    with peer_at(path) as peer:
        peer.acks.clear()
        asyncio.run(agent())


def test_on_shutdown_reaches_a_daemon_that_restarts_meanwhile(path: str) -> None:
    async def agent() -> None:
        session, client = Session(), ChatHistoryClient(path)
        client.attach(session, session_id="room")
        client._attempt = 12  # the daemon was away so long that the next try is seconds off
        client._retry_later()
        session.emit("conversation_item_added", item("kept"))
        session.emit("close", close())
        asyncio.get_running_loop().call_later(0.5, peer.start)
        began = time.monotonic()
        await client.on_shutdown()
        assert client.stats.pending == 0
        assert time.monotonic() - began < 2.0

    peer = Peer(path)
    asyncio.run(agent())
    peer.kill()


def test_while_somebody_waits_for_the_end_the_daemon_is_asked_ten_times_a_second(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        closing = asyncio.ensure_future(client.aclose(timeout=5))
        await until(lambda: client._attempt >= 6)
        assert client._retry_timer is not None
        assert client._retry_timer.when() - asyncio.get_running_loop().time() <= 0.1
        with peer_at(path):
            assert await closing

    asyncio.run(agent())


def test_a_cancelled_shutdown_has_written_the_end(path: str) -> None:
    async def agent() -> None:
        session, client = Session(), ChatHistoryClient(path)
        client.attach(session, session_id="room")
        session.emit("conversation_item_added", item("hello"))
        task = asyncio.ensure_future(client.on_shutdown("cancelled"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        eventually(lambda: "session_end" in peer.archive.kinds())

    with peer_at(path) as peer:
        asyncio.run(agent())


def test_aclose_tells_whether_everything_was_acknowledged(path: str) -> None:
    async def agent() -> Tuple[bool, bool]:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "hello")
        first = await client.aclose(timeout=0.2)
        with peer_at(path):
            second = await client.aclose(timeout=2)
        return first, second

    assert asyncio.run(agent()) == (False, True)


def test_what_aclose_left_is_delivered_when_the_daemon_returns(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "kept")
        assert not await client.aclose(timeout=0.1)
        with peer_at(path, archive):
            await until(lambda: client.stats.pending == 0)

    archive = Archive()
    asyncio.run(agent())
    assert archive.contents() == ["kept"]


def test_a_line_after_the_end_is_still_delivered(path: str) -> None:
    async def agent() -> None:
        session, client = Session(), ChatHistoryClient(path)
        client.attach(session, session_id="room")
        session.emit("close", close())
        assert await client.aclose(timeout=20)
        assert client._sock is None
        client.message(1, "by the way")
        await until(lambda: client.stats.pending == 0)

    with peer_at(path) as peer:
        asyncio.run(agent())
    assert peer.archive.contents() == ["by the way"]


def test_flush_sync_gets_a_backlog_to_a_daemon_that_comes_in_time(path: str) -> None:
    client = ChatHistoryClient(path)
    client.attach(None, session_id="room")
    for n in range(500):
        client.message(1, str(n))
    assert client.flush_sync(0.1) is False
    with peer_at(path) as peer:
        assert client.flush_sync(5.0) is True
        assert peer.archive.contents() == numbers(500)


def test_flush_sync_takes_over_a_half_written_line(path: str) -> None:
    """The socket was full in the middle of a line when the loop ended."""

    async def agent() -> None:
        client.attach(None, session_id="room")
        for n in range(300):
            client.message(1, "%d " % n + "x" * 5000)

    client = ChatHistoryClient(path)
    with peer_at(path) as peer:
        peer.deaf = True
        asyncio.run(agent())
        peer.deaf = False
        assert client.flush_sync(10.0)
        assert [content.split()[0] for content in peer.archive.contents()] == numbers(300)
        assert peer.connections == 1


def test_flush_sync_keeps_its_time(path: str) -> None:
    client = ChatHistoryClient(path)
    client.attach(None, session_id="room")
    client.message(1, "hello")
    began = time.monotonic()
    assert client.flush_sync(0.3) is False
    assert 0.25 < time.monotonic() - began < 1.0
    with peer_at(path) as peer:
        peer.deaf = True
        began = time.monotonic()
        assert client.flush_sync(0.3) is False
        assert 0.25 < time.monotonic() - began < 1.0


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise ValueError('the agent fails')"])
def test_an_agent_that_just_exits_leaves_a_complete_and_ended_session(path: str, ending: str) -> None:
    code = """
        import asyncio, sys
        sys.path[:0] = [%r, %r]
        from chat_history_client import ChatHistoryClient
        async def agent():
            client = ChatHistoryClient(%r)
            client.attach(None, session_id="room")
            for n in range(1000):
                client.message(1, str(n))
            %s
        asyncio.run(agent())
    """ % (str(HERE), str(HERE / "tests"), path, ending)
    with peer_at(path) as peer:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=False)
        assert time.monotonic() - began < 5
        assert peer.archive.contents() == numbers(1000)
        assert peer.archive.all()[-1]["reason"] == "process exit"


def test_without_a_daemon_many_clients_hold_an_exit_for_a_second_at_most(path: str) -> None:
    code = """
        import sys
        sys.path.insert(0, %r)
        from chat_history_client import ChatHistoryClient
        keep = [ChatHistoryClient(%r) for _ in range(20)]
        for client in keep:
            client.attach(None, session_id="room"); client.message(1, "hello")
    """ % (str(HERE), path)
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 0
    assert time.monotonic() - began < 6


def test_hearing_the_end_of_a_sentence_that_never_became_final(path: str) -> None:
    """1.2.x loses what was said last when the caller hangs up in mid-sentence."""
    session, client = Session(), ChatHistoryClient(path)
    with peer_at(path) as peer:
        client.attach(session, session_id="room")
        session.emit("user_input_transcribed", transcript("tell me", is_final=False))
        session.emit("user_input_transcribed", transcript("tell me about the", is_final=False))
        session.emit("close", close())
        assert client.flush_sync(5)
    lines = peer.archive.all()
    assert [line["type"] for line in lines] == ["user_input_transcribed", "close"]
    assert (lines[0]["transcript"], lines[0]["is_final"], lines[0]["promoted"]) == ("tell me about the", True, True)
    assert abs(lines[0]["created_at"] - time.time()) < 5


@pytest.mark.parametrize(
    "then",
    [
        lambda: transcript("tell me about the tiger"),  # it became final
        lambda: item("Tell me about the tiger, please."),  # it became an item
    ],
)
def test_an_interim_that_became_more_is_not_sent(path: str, then: Callable[[], Any]) -> None:
    session, client = Session(), ChatHistoryClient(path)
    with peer_at(path) as peer:
        client.attach(session, session_id="room")
        session.emit("user_input_transcribed", transcript("tell me about", is_final=False))
        event = then()
        session.emit(event.type, event)
        session.emit("close", close())
        assert client.flush_sync(5)
    assert peer.archive.kinds() == [event.type, "close"]


def test_an_old_interim_is_noise(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_history_client._INTERIM_AGE", -1.0)
    session, client = Session(), ChatHistoryClient(path)
    client.attach(session, session_id="room")
    session.emit("user_input_transcribed", transcript("the television", is_final=False))
    session.emit("close", close())
    assert client.stats.enqueued == 1


def test_keeping_interims_can_be_switched_off(path: str) -> None:
    session, client = Session(), ChatHistoryClient(path, keep_interim=False)
    client.attach(session, session_id="room")
    session.emit("user_input_transcribed", transcript("tell me", is_final=False))
    session.emit("close", close())
    assert client.stats.enqueued == 1


def test_several_sessions_of_one_process_have_their_own_streams(path: str) -> None:
    async def agent() -> None:
        clients = [ChatHistoryClient(path) for _ in range(10)]
        for n, client in enumerate(clients):
            client.attach(None, session_id="room %d" % n)
        for turn in range(50):
            for n, client in enumerate(clients):
                client.message(1, "%d.%d" % (n, turn))
        assert all(await asyncio.gather(*(client.aclose(timeout=20) for client in clients)))

    with peer_at(path) as peer:
        asyncio.run(agent())
    assert len({start["stream"] for start in peer.archive.starts}) == 10
    for start in peer.archive.starts:
        lines = peer.archive.lines[start["stream"]]
        number = start["session_id"].split()[1]
        assert [line.get("content") for line in lines[:-1]] == ["%s.%d" % (number, turn) for turn in range(50)]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_to_the_daemon_the_archive_is_contiguous_and_the_books_balance(
    path: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random kills, stalls, late acknowledgements and refusals during a conversation."""
    monkeypatch.setattr("chat_history_client._BACKOFF_MOST", 0.2)
    monkeypatch.setattr("chat_history_client._STALL_CHECK", 0.1)
    chance = random.Random(seed)
    archive = Archive()
    peers: List[Peer] = []

    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        for n in range(400):
            client.message(1, str(n) + " " * chance.choice([0, 0, 0, 3000]))
            stats = client.stats
            assert stats.enqueued == stats.acked + stats.dropped + stats.pending
            what = chance.random()
            if what < 0.02 and peers:
                peers.pop().kill(unlink=chance.random() < 0.5)
            elif what < 0.06 and not peers:
                peers.append(Peer(path, archive).start())
            elif what < 0.10 and peers:
                peers[-1].acks.clear()
            elif what < 0.14 and peers:
                peers[-1].acks.set()
                peers[-1].deaf = False
            elif what < 0.16 and peers:
                peers[-1].deaf = True
            elif what < 0.18 and peers:
                peers[-1].say({"type": "draining"})
            if chance.random() < 0.5:
                await asyncio.sleep(0.002)
        for peer in peers:
            peer.kill()
        last = Peer(path, archive).start()
        assert await client.aclose(timeout=10)
        assert (client.stats.acked, client.stats.dropped, client.stats.pending) == (401, 0, 0)
        last.kill()

    asyncio.run(agent())
    assert [content.strip() for content in archive.contents()] == numbers(400)
    assert contiguous(archive)


def test_the_paths_are_those_of_the_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAT_HISTORYD_SOCKET", "/somewhere.sock")
    assert default_socket_paths() == ["/somewhere.sock"]
    monkeypatch.delenv("CHAT_HISTORYD_SOCKET")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one:/run/two")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_socket_paths()[:4] == [
        "/run/one/events.sock",
        "/run/two/events.sock",
        "/run/chat-historyd/events.sock",
        "/run/user/7/chat-historyd/events.sock",
    ]


def test_a_shared_directory_is_believed_only_if_nobody_else_can_have_made_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CHAT_HISTORYD_SOCKET")
    uid = 4_000_000 + os.getpid()
    shared = Path("/tmp/chat-historyd-%d" % uid)
    monkeypatch.setattr("os.getuid", lambda: uid)
    shared.mkdir()
    try:
        assert str(shared / "events.sock") not in default_socket_paths(), "it belongs to another user"
        if os.geteuid() == 0:
            os.chown(shared, uid, -1)
            shared.chmod(0o777)
            assert str(shared / "events.sock") not in default_socket_paths(), "anybody may write there"
            shared.chmod(0o700)
            assert str(shared / "events.sock") in default_socket_paths()
    finally:
        shared.rmdir()


def test_the_first_path_that_answers_is_taken_and_the_environment_is_read_late(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ChatHistoryClient()
    monkeypatch.setenv("CHAT_HISTORYD_SOCKET", path)
    with peer_at(path) as peer:
        client.attach(None, session_id="room")
        client.message(1, "hello")
        assert client.flush_sync(5)
        several = ChatHistoryClient(["/nonexistent/x", "/" + "x" * 200, "nul\0byte", path])
        several.attach(None, session_id="other")
        several.message(1, "there")
        assert several.flush_sync(5)
    assert peer.archive.contents() == ["hello", "there"]


async def until(reached: Callable[[], Any], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not reached():
        assert time.monotonic() < deadline, "did not happen within %s s" % within
        await asyncio.sleep(0.002)


def test_the_log_names_every_path_that_was_tried_once(path: str, caplog: pytest.LogCaptureFixture) -> None:
    client = ChatHistoryClient(["/nonexistent/first", path])
    client.attach(None, session_id="room")
    for _ in range(5):
        client._connect()
    assert len(caplog.messages) == 1
    assert "/nonexistent/first" in caplog.text
    assert path in caplog.text
    assert "No such file" in caplog.text


def test_lines_are_json_objects_that_end_with_their_number(path: str) -> None:
    with peer_at(path) as peer:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message("user", "hello", id="a", timestamp=1.5, interrupted=True, metadata={"seq": 9})
        assert client.flush_sync(5)
    with contextlib.suppress(ValueError):
        assert json.loads(peer.raw.splitlines()[1]) == {
            "type": "message",
            "chat_type": "user",
            "content": "hello",
            "timestamp": 1.5,
            "id": "a",
            "interrupted": True,
            "metadata": {"seq": 9},
            "seq": 1,
        }
