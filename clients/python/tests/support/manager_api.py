"""A stand-in for the Manager API: the report endpoint and the two that the daemon asks besides, writing to MariaDB."""

from __future__ import annotations

import html
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, List

from support.mariadb import MariaDb

SECRET = "s3cret-of-the-stand-in"


class ManagerApi:
    """Answers as the fork does: times in seconds, nearly every error with HTTP 200, JSON bodies mangled by its XSS filter."""

    def __init__(self, database: MariaDb) -> None:
        self.database = database
        self.reports: List[Dict[str, Any]] = []
        self.unexpected: List[str] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1  # header and body in one segment: else every answer waits for a delayed TCP acknowledgement

            def log_message(self, *_: Any) -> None: ...

            def answer(self, code: int, data: Any = None) -> None:
                body = json.dumps({"code": code, "msg": "", "data": data}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.wfile.flush()

            def do_GET(self) -> None:
                if self.path == "/toy/user/pub-config":
                    self.answer(0, {"version": "0.7.5"})
                elif self.path.startswith("/toy/agent/device/") and self.path.endswith("/agent-id"):
                    self.answer(0, "agent")
                else:
                    api.unexpected.append("GET " + self.path)
                    self.answer(401)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                if self.path != "/toy/agent/chat-history/report":
                    api.unexpected.append("POST " + self.path)
                    self.answer(401)
                elif self.headers["Authorization"] != "Bearer " + SECRET:
                    self.answer(401)
                else:
                    if self.headers["Content-Type"] == "application/json":
                        body = html.escape(body, quote=False)  # the filter looks at exactly this type
                    self.answer(*api.report(body))

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None: ...  # a killed daemon resets its connections

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="manager-api", daemon=True).start()
        self.url = "http://127.0.0.1:%d/toy" % self._server.server_address[1]

    def report(self, body: str) -> Any:
        """Stores one report; the code and data of the answer."""
        try:
            report = json.loads(body)
            self.reports.append(report)
            if not (report.get("macAddress") and report.get("sessionId") and report.get("content", "").strip()):
                return 10034, None
            chat_type = int(report["chatType"])
            self.database.insert(report["macAddress"], report["sessionId"], chat_type, report["content"], report["reportTime"])
        except (ValueError, KeyError, TypeError, self.database.refusal):
            return 500, None
        return 0, True

    def stop(self) -> None:
        """The end of the server."""
        self._server.shutdown()
        self._server.server_close()
