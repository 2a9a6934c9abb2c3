"""Answers and verdicts that outlive the process: what was asked once is not asked again.

A folder of JSONL files, one for each (model, settings) or judge, a line for each answer or verdict. Lines are appended
as they come, in one write each: after a kill all but a torn last line are there. Deleting the folder is always safe.
Knows no model and no judge.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegraft.errors import InputError, Problem, output_errors

VERSION = 1  # of how things are asked and kept; a new one leaves old files unread


@dataclass(frozen=True, slots=True)
class Shelf:
    """One file of the cache: JSON values by key."""

    path: Path

    def read(self) -> dict[str, Any]:
        """What is there. A torn line is no line. Raises InputError when the file cannot be read."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise InputError(Problem(str(self.path), f"cannot be read: {error.strerror}")) from error
        return dict(entry for line in lines if (entry := _entry(line)) is not None)

    def append(self, entries: Mapping[str, Any]) -> None:
        """Add entries, durably. Raises OutputError."""
        if not entries:
            return
        lines = [json.dumps([key, value], ensure_ascii=True) for key, value in entries.items()]
        # A line break comes first, too: it ends what a killed process left torn.
        content = "\n".join(["", *lines, ""]).encode()
        with output_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write(content)
                os.fsync(file.fileno())


def _entry(line: bytes) -> tuple[str, Any] | None:
    try:
        match json.loads(line):
            case [str(key), value]:
                return key, value
            case _:
                return None
    except ValueError:
        return None


def answers_shelf(folder: Path, digest: str, settings: Mapping[str, Any]) -> Shelf:
    """Where the answers of a model, asked with some settings, are kept."""
    return Shelf(folder / "answers" / f"{_digest([VERSION, digest, sorted(settings.items())])}.jsonl")


def verdicts_shelf(folder: Path, judge_digest: str) -> Shelf:
    """Where the verdicts of a judge are kept."""
    return Shelf(folder / "verdicts" / f"{_digest([VERSION, judge_digest])}.jsonl")


def measured_shelf(folder: Path, settings: Sequence[Any]) -> Shelf:
    """Where scores are kept that come without answers."""
    return Shelf(folder / "measured" / f"{_digest([VERSION, *settings])}.jsonl")


def default_folder() -> Path:
    """$SAFEGRAFT_CACHE/evaluate, else ~/.cache/safegraft/evaluate."""
    root = os.environ.get("SAFEGRAFT_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "safegraft") / "evaluate"


def verdict_key(fingerprint: str, answer: str) -> str:
    """The key of a verdict on an answer to an example."""
    return _digest([fingerprint, answer])


def _digest(content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()
