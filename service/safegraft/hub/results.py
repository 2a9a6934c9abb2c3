"""What can be published: a merged folder, or a plan whose files are computed one at a time.

A result hands out its large files one by one, staged on disk, and its small ones in memory; each with its sha256.
Knows nothing of the Hub.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from safegraft.checkpoint.files import Folder, OpenFile
from safegraft.checkpoint.identity import HASHED_BYTES, WeightFile, full_digest
from safegraft.checkpoint.sidecars import MAX_SIDECAR_BYTES, collect_sidecars
from safegraft.engine.execute import MergedCheckpoint, manifest_of
from safegraft.engine.hashing import ThreadedSha256
from safegraft.engine.staging import MANIFEST, FileDigest
from safegraft.engine.task import Plan
from safegraft.errors import CheckpointError, MergeCancelledError, Problem, output_errors
from safegraft.hub.evaluation import FULL, PLAN, SAMPLED, known_digests
from safegraft.hub.manifest import MAX_MANIFEST_BYTES, read_manifest

CARD = "README.md"
CHUNK = 4 << 20  # bytes that are hashed at a time
MAX_CARD_BYTES = 16 << 20

_WEIGHTS = ".safetensors"
_PICTURE = re.compile(r"\]\(([A-Za-z0-9][\w.-]*\.(?:png|jpg|svg|webp))\)", re.ASCII)

Never = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A file of a result. size: bytes. large: it is staged on disk; others are read into memory."""

    name: str
    size: int
    large: bool = False


@dataclass(frozen=True, slots=True)
class Staged:
    """A file that lies on disk, whole. size: bytes."""

    path: Path
    size: int
    sha256: str


class Result(ABC):
    """A merged model, wherever its bytes come from. Use as a context manager, or close it.

    digest: of its plan. files: all but the card and safegraft.json; the large ones first, in the order of the plan.
    card: README.md; empty where there is none. inputs: public names of the models that were merged.
    newer_than: nanoseconds since the epoch; what was made of this plan before may be of other inputs, whose digest
    did not notice. in_place: large files lie on disk already.
    """

    digest: str
    files: Sequence[ResultFile]
    card: bytes
    inputs: Sequence[str]
    newer_than: int = 0
    in_place: bool = False

    def __enter__(self) -> "Result":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def expected(self, name: str) -> FileDigest | None:
        """What a file is known to hold before it is read; None: nothing is."""

    @abstractmethod
    def stage(self, name: str, folder: Path, cancelled: Never) -> Staged:
        """Have a large file whole on disk, in `folder` or where it is. Called from one thread at a time.

        Raises OutputError, MergeCancelledError, and the errors of reading and merging.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A small file. Raises CheckpointError."""

    @abstractmethod
    def manifest(self, files: Mapping[str, FileDigest]) -> bytes:
        """safegraft.json for files of these digests, in this order."""

    @abstractmethod
    def known_digests(self, files: Mapping[str, FileDigest]) -> Mapping[str, str]:
        """The digests that an evaluation of this result can have, as far as they are known; see evaluation.py.

        files: what is known of large ones by now.
        """

    @abstractmethod
    def input_digests(self) -> Collection[str]:
        """Those that an evaluation of an input would have."""

    @abstractmethod
    def verify(self) -> None:
        """Raise InputChangedError unless everything is still what was read."""

    def verify_all(self, cancelled: Never) -> None:
        """Before it is published: as `verify`, and what else was asked for."""
        del cancelled
        self.verify()

    def close(self) -> None:
        """End threads and release files."""


class PlannedResult(Result):
    """What a plan gives, computed when it is asked for. threads, device, cache, owns_plan: see MergedCheckpoint.

    verify_inputs: before it is published, read inputs that come over a network to their ends, so that their sha256 can
    be compared.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        threads: int | None = None,
        device: str = "cpu",
        cache: Path | None = None,
        verify_inputs: bool = False,
        owns_plan: bool = False,
    ) -> None:
        self.plan = plan
        self._verify_inputs = verify_inputs
        self.digest = plan.digest
        content = [one for one in plan.files if one.kind not in ("card", "manifest")]
        shards = [one for one in content if one.kind == "weights"]
        self.files = [ResultFile(one.name, one.size, large=True) for one in shards]
        self.files += [ResultFile(one.name, one.size) for one in content if one.kind != "weights"]
        self.card = next((one.content or b"" for one in plan.files if one.kind == "card"), b"")
        self.inputs = [plan.names[model] for model in plan.recipe.inputs()]
        # A digest over a sample of the weights does not notice every edit; their times of modification do.
        sampled = [one for one in plan.checkpoints.values() if one.identity.scheme == "sampled-sha256"]
        self.newer_than = max((one.modified_ns() for one in sampled), default=0)
        self._small = {one.name: one.content or b"" for one in content if one.kind != "weights"}
        self._merged = MergedCheckpoint(plan, threads=threads, device=device, cache=cache, owns_plan=owns_plan)

    def expected(self, name: str) -> FileDigest | None:
        del name
        return None

    def stage(self, name: str, folder: Path, cancelled: Never) -> Staged:
        path = folder / name
        size = 0
        with output_errors(path), ThreadedSha256() as digest, path.open("xb", buffering=0) as file:
            for block in self._merged.files[name].stream(cancelled=cancelled):
                digest.update(block)
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]
                size += len(block)
            sha256 = digest.hexdigest()
        self.verify()  # it counts only if it is of these inputs
        return Staged(path, size, sha256)

    def read(self, name: str) -> bytes:
        return self._small[name]

    def manifest(self, files: Mapping[str, FileDigest]) -> bytes:
        return manifest_of(self.plan, files)

    def known_digests(self, files: Mapping[str, FileDigest]) -> Mapping[str, str]:
        known = {PLAN: self.digest}
        large = [one for one in self.files if one.large]
        if any(one.name not in files for one in large):
            return known
        weights = [WeightFile(one.name, one.size, "", files[one.name].sha256) for one in large]
        sidecars = {name: self._small[name] for name in collect_sidecars(self._small)}
        known[FULL] = full_digest(weights, sidecars)
        if sum(one.size for one in large) <= HASHED_BYTES:
            known[SAMPLED] = known[FULL]  # so small a folder is never sampled
        return known

    def input_digests(self) -> Collection[str]:
        return {one.identity.digest for one in self.plan.checkpoints.values()}

    def verify(self) -> None:
        for checkpoint in self.plan.checkpoints.values():
            checkpoint.verify_unchanged()

    def verify_all(self, cancelled: Never) -> None:
        self.verify()
        if self._verify_inputs:
            for checkpoint in self.plan.checkpoints.values():
                checkpoint.verify_all(cancelled)

    def close(self) -> None:
        self._merged.close()


class FolderResult(Result):
    """A folder that safegraft has merged. Its files have to be what its safegraft.json says, but for the card, which
    may have been edited. Pictures that the card shows come along.

    Raises CheckpointError when it is none.
    """

    in_place = True

    def __init__(self, path: Path) -> None:
        self.path = path
        name = path.name or "the folder"
        self._folder = Folder(path, name)
        if MANIFEST not in self._folder.names:
            message = f"holds no merge of safegraft: {MANIFEST} is not there"
            raise CheckpointError(Problem(name, f"{message}; merge into a folder first, or give a recipe"))
        content = self._folder.read(MANIFEST, MAX_MANIFEST_BYTES)
        self._manifest = read_manifest(content, f"{name}/{MANIFEST}")
        self._document: dict[str, Any] = json.loads(content)
        self._used: dict[str, OpenFile] = {}
        self.digest = self._manifest.plan_digest
        self.inputs = list(self._manifest.inputs)
        self.card = self._folder.read(CARD, MAX_CARD_BYTES) if CARD in self._folder.names else b""
        files = [_result_file(name, one) for name, one in self._manifest.files.items() if name != CARD]
        files += [ResultFile(one, self._open(one).size) for one in self._pictures()]
        self.files = sorted(files, key=lambda one: not one.large)
        self._require_files()

    def _require_files(self) -> None:
        """Each is there and has its size. Raises CheckpointError with all that are not."""
        problems: list[Problem] = []
        for name, digest in self._manifest.files.items():
            if name == CARD:
                continue
            try:
                size = self._open(name).size
            except CheckpointError as error:
                problems += error.problems
                continue
            if size != digest.size:
                message = f"has {size:,} bytes, and {MANIFEST} says {digest.size:,}: it is not published. Merge again"
                problems.append(Problem(f"{self._folder.name}/{name}", message))
        if problems:
            self.close()
            raise CheckpointError(problems)

    def expected(self, name: str) -> FileDigest | None:
        return self._manifest.files.get(name) if name != CARD else None

    def stage(self, name: str, folder: Path, cancelled: Never) -> Staged:
        del folder
        file = self._open(name)
        with ThreadedSha256() as digest:
            for offset in range(0, file.size, CHUNK):
                if cancelled():
                    raise MergeCancelledError("stopped while a file was being read")
                digest.update(file.read(offset, CHUNK))
            self._require(name, file.size, digest.hexdigest())
            return Staged(self.path / name, file.size, digest.hexdigest())

    def read(self, name: str) -> bytes:
        file = self._open(name)
        content = file.read(0, file.size)
        self._require(name, len(content), hashlib.sha256(content).hexdigest())
        return content

    def manifest(self, files: Mapping[str, FileDigest]) -> bytes:
        listed = {name: {"size": one.size, "sha256": one.sha256} for name, one in files.items()}
        return (json.dumps({**self._document, "files": listed}, indent=2, ensure_ascii=False) + "\n").encode()

    def input_digests(self) -> Collection[str]:
        return {digest for _, digest in self._manifest.inputs.values()}

    def known_digests(self, files: Mapping[str, FileDigest]) -> Mapping[str, str]:
        del files  # they are what safegraft.json says
        if self._manifest.is_adapter:
            return {PLAN: self.digest}
        weights = {name: one.sha256 for name, one in self._manifest.files.items() if name.endswith(_WEIGHTS)}
        return known_digests(self.path, self.digest, weights)

    def verify(self) -> None:
        for file in self._used.values():
            file.verify_unchanged()

    def close(self) -> None:
        for file in self._used.values():
            file.close()
        self._used.clear()

    def _open(self, name: str) -> OpenFile:
        """Held open until the end, so that it is known to be the same one then."""
        if name not in self._used:
            self._used[name] = self._folder.open(name)
        return self._used[name]

    def _pictures(self) -> list[str]:
        shown = _PICTURE.findall(self.card.decode(errors="replace"))
        return sorted({one for one in shown if one in self._folder.names and one not in self._manifest.files})

    def _require(self, name: str, size: int, sha256: str) -> None:
        expected = self.expected(name)
        if expected is None or expected == FileDigest(size, sha256):
            return
        message = f"is not what {MANIFEST} says: it is damaged or was edited, and is not published. Merge again"
        raise CheckpointError(Problem(f"{self._folder.name}/{name}", message))


def _result_file(name: str, digest: FileDigest) -> ResultFile:
    return ResultFile(name, digest.size, large=name.endswith(_WEIGHTS) or digest.size > MAX_SIDECAR_BYTES)
