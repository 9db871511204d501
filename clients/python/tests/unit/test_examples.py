"""The examples for agents without LiveKit do what they say, each in its own language."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

from support.peer import peer_at

EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = [
    "user: hello",
    'agent: "Hi!" said the fox \\ 🐯',
    "user: नमस्ते: तुम कैसे हो?",
    "agent: if a<b then Tom & Jerry",
    "user: yes",
    "user: yes",
]

COMMANDS = [
    pytest.param([sys.executable, "plain_socket.py"], id="python"),
    pytest.param(
        ["node", "plain_socket.mjs"],
        id="node",
        marks=pytest.mark.skipif(not shutil.which("node"), reason="node is not installed"),
    ),
    pytest.param(
        ["bash", "plain_socket.sh"],
        id="shell",
        marks=pytest.mark.skipif(not (shutil.which("socat") or shutil.which("nc")), reason="neither socat nor nc is installed"),
    ),
]


def run(command: List[str], path: str, said: List[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command, "68:25:dd:ba:39:78", "my-session"],
        cwd=EXAMPLES,
        env={**os.environ, "CHAT_HISTORYD_SOCKET": path},
        input="".join(line + "\n" for line in said),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_delivers_a_conversation_and_ends_when_it_is_durable(path: str, command: List[str]) -> None:
    with peer_at(path) as peer:
        done = run(command, path, SAID)
    assert (done.returncode, done.stderr) == (0, "")
    assert ["%s: %s" % (line["chat_type"], line["content"]) for line in peer.archive.all() if line["type"] == "message"] == SAID
    assert peer.archive.kinds()[-1] == "session_end"
    start = peer.archive.starts[0]
    assert (start["v"], start["mac_address"], start["session_id"]) == (1, "68:25:dd:ba:39:78", "my-session")
    assert all(abs(line["timestamp"] - os.stat(os.path.dirname(path)).st_mtime) < 60 for line in peer.archive.all()[:-1])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_says_so_when_a_line_is_refused(path: str, command: List[str]) -> None:
    with peer_at(path) as peer:
        peer.answer = lambda line: (
            {"type": "error", "code": "bad_field", "field": "chat_type", "fatal": False} if "content" in line else None
        )
        done = run(command, path, ["nobody: hello"])
    assert done.returncode == 1
    assert "bad_field" in done.stderr
    assert "chat_type" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_fails_without_a_daemon(path: str, command: List[str]) -> None:
    assert run(command, path, SAID).returncode != 0
