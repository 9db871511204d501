"""The real, unmodified daemon in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Optional

from support.manager_api import SECRET, ManagerApi


def binary() -> Optional[str]:
    """The daemon to test: ``CHAT_HISTORYD_BIN``, else this repository's last build."""
    named = os.environ.get("CHAT_HISTORYD_BIN")
    if named:
        return os.path.abspath(named)
    built = Path(__file__).parents[4] / "target" / "debug" / "chat-historyd"
    return str(built) if built.exists() else None


class Daemon:
    """Configuration, start, kill, restart."""

    def __init__(self, api: Optional[ManagerApi] = None, *, idle_timeout: str = "2s") -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="chc-d-"))
        self.socket = str(self.directory / "events.sock")
        secret = self.directory / "secret"
        secret.write_text(SECRET)
        secret.chmod(0o600)
        upstream = 'url = "%s"\nsecret_file = "%s"\n' % (api.url, secret) if api is not None else ""
        self.config = self.directory / "chat-historyd.toml"
        self.config.write_text(
            '[socket]\npath = "%s"\n'
            '[session]\nidle_timeout = "%s"\nsend_interval = "500ms"\n'
            "[manager_api]\n%s"
            '[upload]\nbackoff_initial = "50ms"\nbackoff_max = "500ms"\n'
            '[store]\ndirectory = "%s"\n'
            '[backup]\ndirectory = "%s"\n'
            '[status]\nsocket = "%s"\n'
            % (
                self.socket,
                idle_timeout,
                upstream,
                self.directory / "store",
                self.directory / "backup",
                self.directory / "status.sock",
            )
        )
        self._process: Optional["subprocess.Popen[bytes]"] = None

    def start(self) -> "Daemon":
        """Until it accepts."""
        program = binary()
        assert program
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [program, "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ.get("PATH", "")},
            )
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.socket)
                return self
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def log(self) -> str:
        """Everything it has said."""
        return (self.directory / "log").read_text(errors="replace")

    def kill(self) -> None:
        """As a crash does it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self, on: bool) -> None:
        """Stops or continues it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if on else signal.SIGCONT)

    def stop(self) -> int:
        """As a service manager does it; the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(20)

    def remove(self) -> None:
        """The end of process and directory."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
