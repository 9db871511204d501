"""Shared by all tests of the client."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Iterator

import pytest

import chat_history_client
from support.daemon import Daemon, binary
from support.manager_api import ManagerApi
from support.mariadb import MariaDb, available


@pytest.fixture
def path() -> Iterator[str]:
    """A socket path short enough for a Unix socket, in a directory of its own."""
    directory = tempfile.mkdtemp(prefix="chc-")
    yield os.path.join(directory, "events.sock")
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_daemon_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test may find a real daemon by accident, and none leaves a client to the exit of the interpreter."""
    monkeypatch.setenv("CHAT_HISTORYD_SOCKET", "/nonexistent/events.sock")
    yield
    chat_history_client._live.clear()


def _must(reason: str) -> None:
    """Skips loudly; under ``run-tests`` nothing may be missing."""
    if os.environ.get("CHAT_HISTORYD_TESTS_COMPLETE"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDb]:
    missing = available()
    if missing:
        _must(missing)
    server = MariaDb()
    yield server
    server.stop()


@pytest.fixture
def manager_api(mariadb: MariaDb) -> Iterator[ManagerApi]:
    api = ManagerApi(mariadb)
    yield api
    api.stop()
    assert api.unexpected == []


@pytest.fixture
def daemon(manager_api: ManagerApi, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    if binary() is None:
        _must("the daemon is not built (cargo build, or CHAT_HISTORYD_BIN)")
    process = Daemon(manager_api).start()
    yield process
    if getattr(request.node, "failed", False):
        print(process.log())
    process.remove()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    if outcome.get_result().failed:  # type: ignore[attr-defined]
        item.failed = True  # type: ignore[attr-defined]
