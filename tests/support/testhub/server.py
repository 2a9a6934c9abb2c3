"""The server: it reads requests from connections, strikes with faults, keeps the records, and sends answers.

It knows HTTP and faults; what an answer says comes from the Hub.
"""

import contextlib
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from testhub.accounts import Account
from testhub.exchange import Answer, Body, Call, Dropped, Refused, Slice
from testhub.faults import Fault, damaged
from testhub.objects import CHUNK, chunks_of
from testhub.signing import without_signature
from testhub.traffic import Request

if TYPE_CHECKING:
    from testhub.hub import Hub

_PACE = 0.02  # seconds between the pieces of a slow answer


class Server(ThreadingHTTPServer):
    """A thread a connection; `stop` drops the connections that clients keep open, and no thread outlives it."""

    request_queue_size = 64

    def __init__(self, address: tuple[str, int], hub: "Hub") -> None:
        self.hub = hub
        self.stopping = threading.Event()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._open_lock = threading.Lock()
        super().__init__(address, _Exchange)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        with self._open_lock:
            self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def stop(self) -> None:
        """Serve no more; call it once, from another thread than the one that serves."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        with self._open_lock:
            left = dict(self._open)
        for connection in left:
            with contextlib.suppress(OSError):  # it may be closed by now
                connection.shutdown(socket.SHUT_RDWR)
        for thread in left.values():
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no error of the server's; all else is."""
        if not isinstance(sys.exception(), ConnectionError):
            self.hub.failures.append(traceback.format_exc())


class _Exchange(BaseHTTPRequestHandler):
    """Reads requests from one connection, strikes with faults, and sends answers."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "testhub", ""
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    @property
    def hub(self) -> "Hub":
        return self.server.hub

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        record = Request(
            self.command,
            without_signature(path, query),
            (self.headers.get("Host") or "").partition(":")[0],
            self.headers.get("Range"),
            "Authorization" in self.headers,
        )
        self.hub.traffic.add(record)
        body = Body(self.rfile, self.headers, record)
        try:
            answer = self._answer(record, path, query, body)
            body.drain()
            self._send(answer, record)
        except (Dropped, ConnectionError):
            self._drop()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Traffic is the log."""

    def _answer(self, record: Request, path: str, query: str, body: Body) -> Answer:
        faults = self.hub.faults
        delayed = faults.take(record, "delayed")
        if delayed is not None:
            self.server.stopping.wait(delayed.seconds)
        if faults.take(record, "dropped", suits=lambda fault: fault.after is None):
            raise Dropped
        fault = faults.take(record, "unavailable", "rate_limited", "gated")
        if fault is not None:
            return _refusal(fault).answer()
        try:
            call = Call(record, path, query, self.headers, body, self._account(record))
            answer = self.hub.answer(call)
        except Refused as refused:
            return refused.answer()
        except (Dropped, ConnectionError):
            raise
        except Exception:  # a bug here, or a request that no client library makes: `with Hub` raises it at its end
            self.hub.failures.append(traceback.format_exc())
            return Refused(500, "Internal Error of the test Hub").answer()
        lost = faults.take(record, "lost_answer")
        if lost is not None and not lost.status:
            raise Dropped
        return _refusal(lost).answer() if lost is not None else answer

    def _account(self, record: Request) -> Account | None:
        header = self.headers.get("Authorization")
        if header is None or record.host == self.hub.cdn_host:
            return None
        account = self.hub.accounts.get(header.removeprefix("Bearer "))
        if account is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return account

    def _send(self, answer: Answer, record: Request) -> None:
        record.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status != 304:
            self.send_header("Content-Length", str(answer.size))
        self.end_headers()
        if self.command == "HEAD" or answer.status == 304:
            return
        dropped = self.hub.faults.take(
            record, "dropped", suits=lambda fault: fault.after is not None and fault.after < answer.size
        )
        left = answer.size if dropped is None or dropped.after is None else dropped.after
        for piece in self._pieces(answer, record):
            piece = piece[:left]
            record.bytes_sent += len(piece)  # before it leaves, so that whoever has received it finds it counted
            self.wfile.write(piece)
            left -= len(piece)
            if dropped is not None and not left:
                raise Dropped

    def _pieces(self, answer: Answer, record: Request) -> Iterator[bytes]:
        """The body in pieces, at the pace and with the damage that faults want."""
        body = answer.body
        slow = self.hub.faults.take(record, "slow")
        size = CHUNK if slow is None else max(1, int(slow.bytes_per_second * _PACE))
        if isinstance(body, Slice):
            kept = body
            flipped = self.hub.faults.take(record, "flipped", suits=lambda each: kept.start <= each.offset < kept.stop)
            pieces = damaged(chunks_of(body.path, body.start, body.stop), flipped, body.start)
        else:
            pieces = iter([body] if body else [])
        for piece in pieces:
            for start in range(0, len(piece), size):
                yield piece[start : start + size]
                if slow is not None:
                    self.wfile.flush()
                    self.server.stopping.wait(_PACE)

    def _drop(self) -> None:
        """Close now; what was written so far is sent, so that a drop is at the byte where it is meant."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


def _refusal(fault: Fault) -> Refused:
    """What a fault answers."""
    headers = {} if fault.retry_after is None else {"Retry_After": str(fault.retry_after)}
    if fault.kind == "rate_limited":
        headers["RateLimit"] = f'"api";r=0;t={fault.retry_after}'
        headers["RateLimit_Policy"] = '"fixed window";"api";q=500;w=300'
        return Refused(429, "We had to rate limit you.", **headers)
    if fault.kind == "gated":
        return Refused(403, "Access to this model is restricted. You are not in the authorized list.", "GatedRepo")
    return Refused(fault.status, "Service Temporarily Unavailable", **headers)
