"""A real MariaDB in a private directory, with the Manager API's table: strict mode, utf8mb4, the real column widths."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, List, NamedTuple, Optional

TABLE = """
CREATE TABLE ai_agent_chat_history (
    id BIGINT AUTO_INCREMENT PRIMARY KEY,
    mac_address VARCHAR(50),
    agent_id VARCHAR(32),
    session_id VARCHAR(100) NOT NULL,
    chat_type TINYINT(3),
    content VARCHAR(1024),
    audio_id VARCHAR(32),
    created_at DATETIME(3) NOT NULL,
    updated_at DATETIME(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3)
) DEFAULT CHARSET=utf8mb4
"""


class Row(NamedTuple):
    """One stored message."""

    mac_address: str
    chat_type: int
    content: str
    created_at: float


def program(name: str) -> Optional[str]:
    """Debian keeps the server out of the path of ordinary users."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


class MariaDb:
    """One server; speaks over a Unix socket only."""

    def __init__(self) -> None:
        import pymysql

        self._pymysql: Any = pymysql
        self.directory = Path(tempfile.mkdtemp(prefix="chc-db-"))
        socket = str(self.directory / "my.sock")
        user, data = "--user=" + getpass.getuser(), "--datadir=%s" % (self.directory / "data")
        # A server that starts removes every temporary table in its tmpdir, also those of another test run's server.
        temporary = "--tmpdir=%s" % (self.directory / "tmp")
        (self.directory / "tmp").mkdir()
        install = program("mariadb-install-db")
        server = program("mariadbd")
        if not (install and server):
            raise RuntimeError("MariaDB is missing (Debian: mariadb-server)")
        log = open(self.directory / "log", "wb")  # noqa: SIM115
        prepare = [install, "--no-defaults", user, data, temporary, "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(prepare, check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._server = subprocess.Popen(
            [
                server,
                "--no-defaults",
                user,
                data,
                temporary,
                "--socket=" + socket,
                "--pid-file=%s" % (self.directory / "my.pid"),
                "--skip-networking",
                "--innodb-buffer-pool-size=64M",
                "--innodb-flush-method=nosync",
                "--skip-log-bin",
                "--max-allowed-packet=64M",
                "--character-set-server=utf8mb4",
                "--default-time-zone=+00:00",
                "--sql-mode=STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO",
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        self._lock = threading.Lock()
        deadline = time.monotonic() + 60
        while True:
            try:
                self._connection = pymysql.connect(unix_socket=socket, user="root", charset="utf8mb4", autocommit=True)
                break
            except pymysql.err.OperationalError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.1)
        self.run("CREATE DATABASE manager_api")
        self.run("USE manager_api")
        self.run(TABLE)

    def run(self, statement: str, *values: object) -> List[Any]:
        """One statement; raises what the server refuses."""
        with self._lock, self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall())

    @property
    def refusal(self) -> Any:
        """The class of the errors that ``run`` raises."""
        return self._pymysql.err.MySQLError

    def insert(self, mac: str, session: str, chat_type: int, content: str, seconds: float) -> None:
        """As the Manager API stores one report."""
        self.run(
            "INSERT INTO ai_agent_chat_history (mac_address, agent_id, session_id, chat_type, content, created_at)"
            " VALUES (%s, 'agent', %s, %s, %s, FROM_UNIXTIME(%s))",
            mac,
            session,
            chat_type,
            content,
            seconds,
        )

    def rows(self, session: str) -> List[Row]:
        """What is stored of a session, in the order it was stored."""
        found = self.run(
            "SELECT mac_address, chat_type, content, UNIX_TIMESTAMP(created_at) FROM ai_agent_chat_history"
            " WHERE session_id = %s ORDER BY id",
            session,
        )
        return [Row(mac, chat_type, content, float(created)) for mac, chat_type, content, created in found]

    def stop(self) -> None:
        """The end of server and directory."""
        self._connection.close()
        self._server.kill()
        self._server.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def available() -> str:
    """Why there can be no MariaDB here; empty when there can."""
    try:
        import pymysql  # noqa: F401
    except ImportError:
        return "PyMySQL is not installed (clients/python/run-tests installs it)"
    if not (program("mariadbd") and program("mariadb-install-db")):
        return "mariadbd is not installed (Debian: mariadb-server)"
    return "" if os.name == "posix" else "no Unix"
