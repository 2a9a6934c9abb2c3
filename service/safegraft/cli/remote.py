"""The way to a server, as the command line's options say it."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safegraft.cli.interrupt import CONTINUE, Departure
from safegraft.errors import MergeCancelledError, UsageError

if TYPE_CHECKING:
    from safegraft.rpc.client import Client

TOKEN = "SAFEGRAFT_TOKEN"
_departure = Departure()
TIMEOUT = 120.0  # seconds for a call with one answer: planning a large merge takes some


@contextmanager
def connect(server: str, token_file: Path | None, ca: Path | None, *, timeout: float = TIMEOUT) -> "Generator[Client]":
    """A client for the time of a `with` block. Nothing is sent before the first call. Raises UsageError."""
    from safegraft.rpc.allocator import keep_freed_memory
    from safegraft.rpc.client import Client
    from safegraft.rpc.options import split_address

    split_address(server)
    keep_freed_memory()
    try:
        with Client(server, token=read_token(token_file), ca=ca, timeout=timeout) as client:
            yield client
    finally:
        _departure.call_off()


def require_no_server_options(**given: object) -> None:
    """Raises UsageError for the first option that is set: without --server it would mean nothing."""
    for name, value in given.items():
        if value:
            raise UsageError(f"--{name.replace('_', '-')} is for a server: add --server HOST:PORT")


def require_no_reading_options(**given: bool) -> None:
    """Raises UsageError for the first option that is set: with --server, the server reads the models."""
    for name, value in given.items():
        if value:
            raise UsageError(f"--{name.replace('_', '-')} is for models read here: leave it or --server away")


@contextmanager
def continuing(goes_on: str = "") -> Generator[None]:
    """Say how to go on when Ctrl-C or SIGTERM stops a transfer. goes_on: what the server does meanwhile."""
    words = f"stopped; {goes_on}{CONTINUE}"
    try:
        with _departure.on_signal(words):
            yield
    except KeyboardInterrupt as error:
        raise MergeCancelledError(words) from error


def read_token(token_file: Path | None) -> str | None:
    """The token from the file, else from the environment, else None. Raises UsageError."""
    if token_file is None:
        return os.environ.get(TOKEN) or None
    try:
        token = token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {token_file}: cannot be read: {error}") from error
    if not token:
        raise UsageError(f"--token-file {token_file}: the file is empty")
    return token
