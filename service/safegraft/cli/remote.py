"""The way to a server, as the command line's options say it."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safegraft.errors import UsageError

if TYPE_CHECKING:
    from safegraft.rpc.client import Client

TOKEN = "SAFEGRAFT_TOKEN"


@contextmanager
def connect(server: str, token_file: Path | None) -> "Generator[Client]":
    """A client for the time of a `with` block. Nothing is sent before the first call."""
    from safegraft.rpc.client import Client

    with Client(server, token=read_token(token_file)) as client:
        yield client


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
