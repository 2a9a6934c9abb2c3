"""What a server's owner lets recipes reach over the network: models of the Hub, places below URLs, named tokens.

Decides from text alone and opens no connection. Which URL lies below which is safegraft.remote.url_policy's to say.
"""

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safegraft.checkpoint.hub_cache import HUB_NAME
from safegraft.errors import ServerError, UsageError
from safegraft.remote.url_names import shown_url

SCHEMES = ("s3", "gs", "az", "https", "http")
_PATTERN = re.compile(r"\*|[A-Za-z0-9._*-]+/[A-Za-z0-9._*-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_TOKEN_BYTES = 4096


def require_patterns(option: str, patterns: Iterable[str]) -> None:
    """Raises UsageError, naming the command line's option, unless each is ORG/NAME with `*` for any text, or `*`."""
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise UsageError(f"{option} {pattern}: give ORG/NAME, where * stands for any text, as in 'org/*'; or '*'")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether ORG/NAME fits a pattern. Case counts."""
    return HUB_NAME.fullmatch(name) is not None and any(_fits(name, pattern) for pattern in patterns)


def _fits(name: str, pattern: str) -> bool:
    pieces = map(re.escape, pattern.split("*"))
    return pattern == "*" or re.fullmatch("[^/]*".join(pieces), name) is not None


def require_prefixes(prefixes: Iterable[str]) -> None:
    """Raises UsageError unless each is a URL below which models can lie."""
    for prefix in prefixes:
        if prefix.partition("://")[0] not in SCHEMES:
            kinds = ", ".join(f"{one}://" for one in SCHEMES)
            raise UsageError(f"--url {shown_url(prefix)}: give a URL that begins with one of {kinds}")
        from safegraft.remote.url_policy import UrlPolicy  # heavy: it brings the HTTP client

        try:
            UrlPolicy((prefix,))
        except UsageError as error:
            raise UsageError(f"--url {error}") from error


@dataclass(frozen=True, slots=True)
class HubCredential:
    """A Hub token that requests may use by its name. It stays in its file, and is read anew for each use."""

    name: str
    path: Path

    @classmethod
    def parse(cls, argument: str) -> "HubCredential":
        """Read a command line's "NAME=FILE". Raises UsageError, also when the file holds no token or others see it."""
        name, _, path = argument.partition("=")
        if not _NAME.fullmatch(name) or not path:
            raise UsageError(f"--hub-credential {argument}: give NAME=FILE, the name of letters, digits, '.', '_', '-'")
        credential = cls(name, Path(path).expanduser().absolute())
        try:
            _read_token(credential.path)
        except ValueError as error:
            raise UsageError(f"--hub-credential {argument}: the file {error}") from error
        return credential

    def token(self) -> str:
        """Raises ServerError, without the file's place, when its owner has broken it since the server started."""
        try:
            return _read_token(self.path)
        except ValueError as error:
            message = f"the server's credential {self.name} cannot be used: its file {error}; tell the server's owner"
            raise ServerError(message) from error


def _read_token(path: Path) -> str:
    """Raises ValueError in words that go on from "the file"."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXO | stat.S_IWGRP):
                raise ValueError("is open to others on this machine: chmod 600 it")
            content = file.read(_MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    token = content.decode("ascii", "replace").strip()
    if len(content) > _MAX_TOKEN_BYTES or not re.fullmatch("[!-~]+", token):
        raise ValueError("holds no token: one line of ASCII without spaces is needed")
    return token
