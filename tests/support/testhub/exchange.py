"""One request and its answer as the endpoints see them, and refusals in the Hub's words and headers."""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs

from testhub.accounts import Account
from testhub.objects import CHUNK
from testhub.traffic import Request


class Dropped(Exception):
    """The connection is to be closed without (another) word."""


class Body(io.RawIOBase):
    """The body of a request, of a known length or chunked; it counts what it has read."""

    def __init__(self, connection: BinaryIO, headers: Message, record: Request) -> None:
        self._connection = connection
        self._chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        self.length = None if self._chunked else int(headers.get("Content-Length", 0))
        self._left = self.length or 0
        self._ended = not self._chunked and not self._left
        self._record = record

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left and not self._ended:
            self._next_chunk()
        if self._ended:
            return 0
        data = self._connection.read(min(self._left, len(buffer)))
        if not data:
            raise Dropped("the client went away in the middle of a body")
        buffer[: len(data)] = data
        self._left -= len(data)
        self._record.bytes_received += len(data)
        if not self._left:
            if self._chunked:
                self._connection.readline()  # each chunk ends with an empty line
            else:
                self._ended = True
        return len(data)

    def pieces(self) -> Iterator[bytes]:
        """The rest of it, a mebibyte at most at a time."""
        while piece := self.read(CHUNK):
            yield piece

    def drain(self) -> None:
        """Read to the end: what is left unread would be taken for the next request."""
        for _ in self.pieces():
            pass

    def _next_chunk(self) -> None:
        line = self._connection.readline()
        if not line:
            raise Dropped("the client went away in the middle of a body")
        self._left = int(line.split(b";")[0], 16)
        if not self._left:
            self._ended = True
            while self._connection.readline().strip():
                pass


@dataclass(slots=True)
class Call:
    """A request on its way to an endpoint: path and query as they were sent, `account` None without a token."""

    record: Request
    path: str
    query: str
    headers: Message
    body: Body
    account: Account | None

    @property
    def method(self) -> str:
        return self.record.method

    @property
    def user(self) -> str:
        """The user's name; only where a right was asked for."""
        assert self.account is not None
        return self.account.user

    def option(self, name: str) -> str | None:
        """The first value of a query parameter."""
        return parse_qs(self.query, keep_blank_values=True).get(name, [None])[0]

    def options(self, name: str) -> list[str]:
        return parse_qs(self.query).get(name, [])

    def flag(self, name: str) -> bool:
        return self.option(name) in ("1", "true", "True")

    def lines(self) -> Iterator[bytes]:
        """The lines of the body; a line is held whole."""
        yield from io.BufferedReader(self.body, CHUNK)

    def text(self) -> str:
        return b"".join(self.body.pieces()).decode()

    def form(self) -> dict[str, list[str]]:
        """A urlencoded body."""
        return parse_qs(self.text(), keep_blank_values=True)

    def json(self) -> dict[str, Any]:
        """Raises: Refused: it is no JSON object."""
        try:
            value = json.loads(self.text() or "{}")
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Refused(400, "The body must be a JSON object")
        return value


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes of a file on disk."""

    path: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class Answer:
    """What to send. A body on disk is read while it is sent."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Slice = b""

    @property
    def size(self) -> int:
        return self.body.size if isinstance(self.body, Slice) else len(self.body)


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())


class Refused(Exception):
    """The request is refused: status, words, and the code by which clients tell one 404 from another."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(self) -> Answer:
        headers = {"X-Error-Message": self.message, **({"X-Error-Code": self.code} if self.code else {})}
        return json_answer({"error": self.message}, self.status, {**headers, **self.headers})


def no_repository(account: Account | None) -> Refused:
    """A repository that is not there, or not for this account: the Hub does not tell which."""
    return Refused(404 if account else 401, "Repository not found", "RepoNotFound")


def gated_off(account: Account | None, name: str) -> Refused:
    words = f"Access to model {name} is restricted. You must have access to it and be authenticated to access it."
    return Refused(403 if account else 401, words, "GatedRepo")


def no_revision(revision: str) -> Refused:
    return Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def no_entry(commit: str) -> Refused:
    return Refused(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit)
