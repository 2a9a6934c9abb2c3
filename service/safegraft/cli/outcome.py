"""How a folder that has been written is shown, wherever it was computed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft.cli.sizes import format_size
from safegraft.cli.terminal import note, say, say_json

if TYPE_CHECKING:
    from safegraft.rpc.client import PullResult


@dataclass(frozen=True, slots=True)
class Outcome:
    """files: name -> (size in bytes, sha256). bytes_written, seconds: of this run, not of one it continues."""

    out: Path
    digest: str
    files: Mapping[str, tuple[int, str]]
    bytes_written: int
    seconds: float
    resumed: bool
    warnings: Sequence[str] = ()

    def show(self, as_json: bool) -> None:
        """Print it on stdout."""
        if as_json:
            say_json(self._document())
            return
        size = sum(size for size, _ in self.files.values())
        say(f"{self.out}: {len(self.files)} files, {format_size(size)}")
        if self.bytes_written:
            speed = f", {format_size(self.bytes_written / self.seconds)}/s" if self.seconds > 0 else ""
            continued = " (continuing an earlier run)" if self.resumed else ""
            say(f"wrote {format_size(self.bytes_written)} in {self.seconds:.1f} s{speed}{continued}")
        else:
            say("it was complete already; nothing was written")
        say(f"plan digest {self.digest}")

    def _document(self) -> dict[str, Any]:
        return {
            "out": os.fspath(self.out),
            "digest": self.digest,
            "files": [
                {"name": name, "size_bytes": size, "sha256": sha256} for name, (size, sha256) in self.files.items()
            ],
            "bytes_written": self.bytes_written,
            "seconds": round(self.seconds, 3),
            "resumed": self.resumed,
            "warnings": list(self.warnings),
        }


def pulled(result: "PullResult", warnings: Sequence[str]) -> Outcome:
    """What has come from a server; its warnings are shown at once."""
    for warning in warnings:
        note(f"warning: {warning}")
    files = {name: (file.size, file.sha256) for name, file in result.files.items()}
    return Outcome(result.out, result.digest, files, result.bytes_received, result.seconds, result.resumed, warnings)
