"""The client against the real binary: from Python to rows in MariaDB, through kills, stalls and restarts."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from chat_history_client import ChatHistoryClient
from support.daemon import Daemon
from support.manager_api import ManagerApi
from support.mariadb import MariaDb
from support.session import Session, close, item, transcript

HERE = Path(__file__).parents[2]
MAC = "68:25:dd:ba:39:78"
_rooms = iter(range(1_000_000))


@pytest.fixture
def room() -> str:
    return "r%d-%d_6825ddba3978_conversation" % (os.getpid(), next(_rooms))


def numbers(count: int) -> List[str]:
    return [str(n) for n in range(count)]


def rows(database: MariaDb, room: str, count: int, within: float = 30.0) -> List[str]:
    """The contents stored of a session, once there are so many and no more come."""
    deadline = time.monotonic() + within
    while len(database.rows(room)) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    return [row.content for row in database.rows(room)]


def test_a_conversation_arrives(daemon: Daemon, mariadb: MariaDb, room: str) -> None:
    async def agent() -> None:
        session, client = Session(), ChatHistoryClient(daemon.socket)
        client.attach(session, session_id=room)  # the MAC is in the room name
        session.emit("conversation_item_added", item("Hello! 🐯", role="assistant"))
        session.emit("user_input_transcribed", transcript("half a \ud83d word"))
        session.emit("conversation_item_added", item("half a \ud83d word"))
        session.emit("conversation_item_added", item("if a<b then Tom & Jerry  agree", role="assistant", created_at=float("nan")))
        session.emit("user_input_transcribed", transcript("never committed"))
        client.message(1, "dtmf 42", id="dtmf-7")
        session.emit("user_input_transcribed", transcript("cut off in", is_final=False))
        session.emit("close", close())
        await client.on_shutdown("done")
        assert client.stats == (9, 9, 0, 0, 0, 1, 0, 0)

    asyncio.run(agent())
    said = rows(mariadb, room, 6)
    assert said[0] == "Hello! 🐯"
    assert said[1:3] == ["half a \ufffd word", "if a<b then Tom & Jerry  agree"]
    assert sorted(said[3:]) == ["cut off in", "dtmf 42", "never committed"]
    assert {row.mac_address for row in mariadb.rows(room)} == {MAC}
    assert [row.chat_type for row in mariadb.rows(room)][:3] == [2, 1, 2]


def test_a_thousand_lines_arrive_once_and_in_order(daemon: Daemon, mariadb: MariaDb, room: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(daemon.socket)
        client.attach(None, session_id=room)
        for n in range(1000):
            client.message(1 + n % 2, str(n))
            if n % 20 == 0:
                await asyncio.sleep(0)
        assert await client.aclose(timeout=20)

    asyncio.run(agent())
    assert rows(mariadb, room, 1000) == numbers(1000)


def test_a_daemon_that_is_killed_twice_gets_everything_once(daemon: Daemon, mariadb: MariaDb, room: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(daemon.socket)
        client.attach(None, session_id=room)
        for n in range(300):
            client.message(1, str(n))
            await asyncio.sleep(0.003)
            if n in (100, 200):
                daemon.kill()
                daemon.start()
        assert await client.aclose(timeout=10)
        assert client.stats.connects >= 3
        assert client.stats.dropped == 0

    asyncio.run(agent())
    # a kill may repeat at most two reports that were on their way to the Manager API
    said = rows(mariadb, room, 300)
    assert list(dict.fromkeys(said)) == numbers(300)
    assert len(said) <= 304


def test_a_daemon_that_is_restarted_in_order_gets_everything_once(daemon: Daemon, mariadb: MariaDb, room: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(daemon.socket)
        client.attach(None, session_id=room)
        for n in range(200):
            client.message(1, str(n))
            await asyncio.sleep(0.003)
            if n == 100:
                loop = asyncio.get_running_loop()
                stopping = loop.run_in_executor(None, daemon.stop)
                while not stopping.done():
                    await asyncio.sleep(0.01)
                assert stopping.result() == 0
                daemon.start()
        assert await client.aclose(timeout=10)

    asyncio.run(agent())
    assert rows(mariadb, room, 200) == numbers(200)


def test_a_daemon_that_comes_late_gets_everything(daemon: Daemon, mariadb: MariaDb, room: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(daemon.socket)
        client.attach(None, session_id=room)
        for n in range(600):
            client.message(1, str(n))
        daemon.start()
        assert await client.aclose(timeout=10)

    daemon.kill()
    asyncio.run(agent())
    assert rows(mariadb, room, 600) == numbers(600)


def test_a_daemon_that_stalls_gets_what_memory_held(daemon: Daemon, mariadb: MariaDb, room: str) -> None:
    async def agent() -> Tuple[int, int]:
        client = ChatHistoryClient(daemon.socket)
        client.attach(None, session_id=room)
        client.message(1, "first")
        while client.stats.acked < 1:
            await asyncio.sleep(0.002)
        daemon.freeze(True)
        for n in range(5000):
            client.message(1, "%d %s" % (n, "x" * 100))
        daemon.freeze(False)
        assert await client.aclose(timeout=20)
        return client.stats.acked, client.stats.dropped

    acked, dropped = asyncio.run(agent())
    assert acked + dropped == 5002
    assert dropped <= 3001
    said = [int(content.split()[0]) for content in rows(mariadb, room, acked - 1, within=60)[1:]]
    assert said == sorted(set(said))
    assert said[-1999:] == list(range(3001, 5000))
    assert len(said) == 5000 - dropped


def test_an_agent_that_is_killed_loses_nothing_and_its_session_ends_by_idle(daemon: Daemon, mariadb: MariaDb, room: str) -> None:
    code = """
        import asyncio, os, signal, sys
        sys.path[:0] = [%r, %r]
        from chat_history_client import ChatHistoryClient
        from support.session import Session, item, transcript
        async def agent():
            session, client = Session(), ChatHistoryClient(%r)
            client.attach(session, session_id=%r)
            for n in range(50):
                session.emit("conversation_item_added", item(str(n)))
            session.emit("user_input_transcribed", transcript("last words"))
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(agent())
    """ % (str(HERE), str(HERE / "tests"), daemon.socket, room)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert rows(mariadb, room, 51) == [*numbers(50), "last words"]
    backups = list((daemon.directory / "backup").rglob("*.json"))
    assert len(backups) == 1
    assert len(json.loads(backups[0].read_text())["messages"]) == 51


def test_a_refused_session_start_is_named_and_nothing_is_lost_silently(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(daemon.socket)
        client.attach(None, mac_address="nonsense", session_id="no-mac-in-here")
        client.message(1, "kept")
        assert not await client.aclose(timeout=0.5)
        assert client.stats.pending == 2
        assert client.stats.refused >= 1

    asyncio.run(agent())
    assert "bad_field" in caplog.text


def test_a_refused_line_does_not_stop_the_others(daemon: Daemon, mariadb: MariaDb, room: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(daemon.socket)
        client.attach(None, session_id=room)
        client.message(3, "refused")
        client.message("agent", "taken")
        assert await client.aclose(timeout=20)
        assert client.stats.refused == 1

    asyncio.run(agent())
    assert rows(mariadb, room, 1) == ["taken"]


def test_the_first_sentence_after_the_end_reopens_the_session(daemon: Daemon, mariadb: MariaDb, room: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(daemon.socket)
        client.attach(None, session_id=room)
        client.message(1, "before")
        assert await client.aclose(timeout=20)
        client.message(1, "after")
        assert await client.aclose(timeout=20)

    asyncio.run(agent())
    assert rows(mariadb, room, 2) == ["before", "after"]


EXAMPLES: List[Any] = [
    pytest.param([sys.executable, "plain_socket.py"], id="python"),
    pytest.param(["node", "plain_socket.mjs"], id="node", marks=pytest.mark.skipif(not shutil.which("node"), reason="no node")),
    pytest.param(["bash", "plain_socket.sh"], id="shell", marks=pytest.mark.skipif(not shutil.which("socat"), reason="no socat")),
]


@pytest.mark.parametrize("command", EXAMPLES)
def test_the_example_reaches_the_database(daemon: Daemon, mariadb: MariaDb, room: str, command: List[str]) -> None:
    said = ["hello", '"Hi!" said the fox \\ 🐯', "नमस्ते: तुम कैसे हो?", "if a<b then Tom & Jerry", "yes", "yes"]
    done = subprocess.run(
        [*command, MAC, room],
        cwd=HERE / "examples",
        env={**os.environ, "CHAT_HISTORYD_SOCKET": daemon.socket},
        input="".join("%s: %s\n" % ("user" if n % 2 else "agent", text) for n, text in enumerate(said)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(mariadb, room, 6) == said
    assert [row.chat_type for row in mariadb.rows(room)] == [2, 1] * 3


def test_the_stand_in_would_show_a_difference(manager_api: ManagerApi, mariadb: MariaDb, room: str) -> None:
    """The judge is strict: wrong widths are refused, wrong secrets too."""
    report = {"macAddress": MAC, "sessionId": room, "chatType": 1, "content": "x" * 1025, "reportTime": 1758701973}
    assert manager_api.report(json.dumps(report)) == (500, None)
    assert manager_api.report(json.dumps({**report, "content": "🐯" * 1024})) == (0, True)
    assert mariadb.rows(room)[0].content == "🐯" * 1024
