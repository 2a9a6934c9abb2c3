"""A web server that serves bytes by range and misbehaves as told: for tests of whoever reads from one."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class Asked:
    """A request as it came."""

    path: str  # with its query
    host: str
    headers: dict[str, str]

    @property
    def range(self) -> tuple[int, int] | None:
        """First byte, and the one after the last."""
        match = _RANGE.fullmatch(self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) + 1) if match else None


@dataclass
class Reply:
    """An answer. cut: close the connection after so many bytes of the body (0: before any)."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    cut: int | None = None
    before_body: Callable[[], object] | None = None


Answer = Callable[[Asked], Reply]


class ScriptedServer:
    """files: path -> content. script: answers to give first, one a request, in place of the usual one (None: that).

    asked: every request so far. connections: how many were made.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.script: list[Answer | Reply | None] = []
        self.otherwise: Answer | None = None
        self.asked: list[Asked] = []
        self.connections = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with server.lock:
                    server.connections += 1

            def do_GET(self) -> None:
                server._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that hangs up

        self._server = Server((host, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self._server.server_address[1]}{path}"

    def usual(self, asked: Asked) -> Reply:
        """The file's range; 404 when there is none."""
        content = self.files.get(urlsplit(asked.path).path)
        if content is None:
            return Reply(404, {}, b"not here")
        if asked.range is None:
            return Reply(200, dict(self.headers), content)
        start, stop = asked.range
        if start >= len(content):
            return Reply(416, {"Content-Range": f"bytes */{len(content)}"})
        stop = min(stop, len(content))
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}", **self.headers}
        return Reply(206, headers, content[start:stop])

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        asked = Asked(handler.path, headers.get("host", "").rpartition(":")[0], headers)
        with self.lock:
            self.asked.append(asked)
            scripted = self.script.pop(0) if self.script else None
        reply = scripted if isinstance(scripted, Reply) else (scripted or self.otherwise or self.usual)(asked)
        if reply.cut == 0:
            handler.close_connection = True
            return
        handler.send_response_only(reply.status)
        length = {} if "Transfer-Encoding" in reply.headers else {"Content-Length": str(len(reply.body))}
        for name, value in {**length, **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if reply.before_body is not None:
            reply.before_body()
        handler.wfile.write(reply.body[: reply.cut])
        if reply.cut is not None:
            handler.close_connection = True


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    try:
        yield server
    finally:
        server.stop()
