"""What a publication has uploaded already, so that another run neither computes nor sends it again.

One JSON file for each endpoint, repository, revision and plan; it goes once the publication is made. It only says
what was sent: whether the Hub still has it is for others to ask. Knows no Hub.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safegraft.engine.staging import FileDigest
from safegraft.errors import output_errors

_FORMAT = "safegraft-publishing/1"


def default_folder() -> Path:
    """$SAFEGRAFT_CACHE/publishing, else ~/.cache/safegraft/publishing."""
    root = os.environ.get("SAFEGRAFT_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "safegraft") / "publishing"


_SHA256 = re.compile(r"[0-9a-f]{64}")


class Journal:
    """What has been uploaded: `files`, name -> size in bytes and sha256.

    folder: where journals lie. digest: of the plan. newer_than: nanoseconds since the epoch; what was begun before
    is not used, because an input was modified since and may have kept its digest.
    """

    def __init__(
        self, folder: Path, endpoint: str, repository: str, revision: str, digest: str, newer_than: int = 0
    ) -> None:
        self._whose = {
            "format": _FORMAT,
            "endpoint": endpoint,
            "repository": repository,
            "revision": revision,
            "plan_digest": digest,
        }
        self.key = hashlib.sha256(json.dumps(self._whose).encode()).hexdigest()[:32]
        self._path = folder / f"{self.key}.json"
        with output_errors(self._path):  # now, and not when something has been sent
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._begun_ns, self._files = self._read(newer_than) or (time.time_ns(), {})

    @property
    def files(self) -> Mapping[str, FileDigest]:
        return self._files

    def record(self, name: str, digest: FileDigest) -> None:
        """Note a file that the Hub has. Raises OutputError."""
        self._files[name] = digest
        files = {name: {"size": one.size, "sha256": one.sha256} for name, one in self._files.items()}
        document = {**self._whose, "begun_ns": self._begun_ns, "files": files}
        with output_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _write_durably(self._path, json.dumps(document, indent=2).encode())

    def discard(self) -> None:
        """Forget everything: it is published, or of inputs that have changed. Raises OutputError."""
        self._files = {}
        with output_errors(self._path):
            self._path.unlink(missing_ok=True)

    def _read(self, newer_than: int) -> tuple[int, dict[str, FileDigest]] | None:
        """None where there is none that can be used."""
        try:
            document: Any = json.loads(self._path.read_bytes())
            if any(document[key] != value for key, value in self._whose.items()) or document["begun_ns"] < newer_than:
                return None
            files = {
                str(name): FileDigest(int(one["size"]), str(one["sha256"])) for name, one in document["files"].items()
            }
            sound = all(one.size >= 0 and _SHA256.fullmatch(one.sha256) for one in files.values())
            return (int(document["begun_ns"]), files) if sound else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None


def _write_durably(path: Path, content: bytes) -> None:
    """Whoever reads finds the old content or the new one, also after a power cut."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
