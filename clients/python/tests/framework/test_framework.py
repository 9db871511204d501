"""The real framework, both versions, into the real daemon, to rows in MariaDB, compared with what was said."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from support.daemon import Daemon
from support.mariadb import MariaDb, Row

HERE = Path(__file__).parent
VERSIONS = ("1.2.8", "newest")


def python_with(version: str) -> str:
    """The interpreter of the environment that holds this version (``run-tests`` makes them)."""
    cache = Path(os.environ.get("CHAT_HISTORYD_TEST_CACHE") or HERE.parents[3] / ".cache")
    python = cache / ("livekit-" + version) / "bin" / "python"
    if not python.exists():
        reason = "livekit-agents %s is not in %s (clients/python/run-tests installs it)" % (version, cache)
        if os.environ.get("CHAT_HISTORYD_TESTS_COMPLETE"):
            pytest.fail(reason)
        pytest.skip(reason)
    return str(python)


@functools.lru_cache(maxsize=1)
def without_network() -> Tuple[str, ...]:
    """The command that takes the network away, where the system lets us."""
    unshare = shutil.which("unshare")
    if unshare and subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode == 0:
        return (unshare, "-rn")
    print("unshare -rn does not work here: the framework runs with the network it finds", file=sys.stderr)
    return ()


def play(script: str, version: str, *arguments: str, timeout: float = 150) -> str:
    done = subprocess.run(
        [*without_network(), python_with(version), str(HERE / script), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    print(done.stderr[-20_000:], file=sys.stderr)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def settled(database: MariaDb, room: str, count: int, within: float = 20.0) -> List[Row]:
    """The rows of a session once nothing more comes (the daemon's idle timeout is two seconds)."""
    deadline = time.monotonic() + within
    while len(database.rows(room)) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2.5)
    return database.rows(room)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_said_is_what_is_stored(daemon: Daemon, mariadb: MariaDb, version: str) -> None:
    began = time.time()
    played = json.loads(play("scenario.py", version, daemon.socket, "f%d-%s" % (os.getpid(), version)))
    print("livekit-agents %(version)s: %(seconds)s s" % played)
    if version != "newest":
        assert played["version"] == version
    sessions: Dict[str, Any] = played["sessions"]
    assert len(sessions) == 3
    for room, session in sessions.items():
        rows = settled(mariadb, room, len(session["said"]))
        compare(rows, session["said"])
        assert {row.mac_address for row in rows} == {session["mac"]}
        times = [row.created_at for row in rows]
        assert times == sorted(times)
        assert began - 2 <= times[0] <= times[-1] <= time.time() + 1


def compare(rows: List[Row], said: List[List[Any]]) -> None:
    stored = [(row.chat_type, row.content) for row in rows]
    expected = [(chat_type, text) for chat_type, text, _ in said]
    whole = [
        # of a sentence that was cut off, the words that were heard stand for it
        (chat_type, heard if not exactly and text.startswith(heard) and 0 < len(heard) < len(text) else text)
        for (chat_type, text, exactly), (_, heard) in zip(said, stored)
    ]
    assert stored == whole + expected[len(stored) :]


def test_killed_job_processes_lose_nothing_and_their_sessions_end_by_idle(
    daemon: Daemon, mariadb: MariaDb, tmp_path: Path
) -> None:
    rooms = ["j%d-%s_6825ddba3978_conversation" % (os.getpid(), name) for name in ("first", "second", "victim")]
    play("jobs.py", "newest", daemon.socket, str(tmp_path), *rooms)
    for room in rooms:
        said = [tuple(json.loads(line)) for line in (tmp_path / (room + ".said")).read_text().splitlines()]
        assert len(said) == (16 if room == rooms[-1] else 24)
        rows = settled(mariadb, room, len(said))
        assert [(row.chat_type, row.content) for row in rows] == said
    for room in rooms[:-1]:
        stats = json.loads((tmp_path / (room + ".stats")).read_text())
        assert (stats["pending"], stats["dropped"], stats["errors"]) == (0, 0, 0)
    assert not (tmp_path / (rooms[-1] + ".stats")).exists()
    # the killed one's session was ended by the daemon itself: its backup is there, whole
    backups = [json.loads(path.read_text()) for path in (daemon.directory / "backup").rglob("*.json")]
    assert sorted(len(backup["messages"]) for backup in backups) == [16, 24, 24]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_frameworks_own_events_survive_their_serialisation_traps(version: str) -> None:
    assert play("traps.py", version).strip().endswith("ok")
