"""A plan's virtual files written to a folder that appears only when complete."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safegraft.engine.execute import MergedCheckpoint, Never, manifest_of, never
from safegraft.engine.staging import FileDigest, StagedFolder
from safegraft.engine.task import Plan, PlannedFile
from safegraft.errors import InputChangedError, OutputError

RESERVE = 16 << 20  # bytes that stay free on the disk


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the whole merge is. `file`: the one that is being written, or what models are being put to work for."""

    file: str
    bytes_done: int
    bytes_total: int
    tensors_done: int
    tensors_total: int


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What is in the folder. `seconds`: of this run; `resumed`: whether an earlier one's work was used."""

    out: Path
    digest: str
    files: dict[str, FileDigest]
    seconds: float
    bytes_written: int
    resumed: bool


def write_folder(
    plan: Plan,
    out: Path,
    *,
    threads: int | None = None,
    device: str = "cpu",
    cache: Path | None = None,
    verify_inputs: bool = False,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Never = never,
) -> MergeResult:
    """Merge into `out`, which appears when everything is there. A rerun continues where one stopped.

    threads, device, cache: see MergedCheckpoint. verify_inputs: read inputs that come over a network to their ends, so
    that their sha256 can be compared.

    Raises OutputError (in the way, disk full), NonFiniteError, InputChangedError, MergeCancelledError.
    """
    began = time.monotonic()
    # A digest over a sample of the weights does not notice every edit; their times of modification do.
    sampled = [one for one in plan.checkpoints.values() if one.identity.scheme == "sampled-sha256"]
    modified = max((one.modified_ns() for one in sampled), default=0)
    with StagedFolder(out, plan.digest, newer_than=modified) as folder:
        resumed = folder.resumed or folder.complete
        written = 0
        if not folder.complete:
            _require_space(plan, folder)
            try:
                with MergedCheckpoint(plan, threads=threads, device=device, cache=cache) as merged:
                    written = _Writer(plan, merged, folder, progress, cancelled).run()
                _verify_inputs(plan)
                if verify_inputs:
                    for checkpoint in plan.checkpoints.values():
                        checkpoint.verify_all(cancelled)
            except InputChangedError:
                folder.discard()  # what was written may be of either version
                raise
            folder.commit()
    return MergeResult(folder.out, plan.digest, dict(folder.finished), time.monotonic() - began, written, resumed)


class _Writer:
    def __init__(
        self,
        plan: Plan,
        merged: MergedCheckpoint,
        folder: StagedFolder,
        progress: Callable[[Progress], None] | None,
        cancelled: Never,
    ) -> None:
        self.plan = plan
        self.merged = merged
        self.folder = folder
        self.progress = progress
        self.cancelled = cancelled
        self.bytes_done = 0
        self.tensors_done = 0
        self.written = 0

    def run(self) -> int:
        """Write what is missing; returns how many bytes that was."""
        placed = [one for file in self.plan.files if file.name not in self.folder.finished for one in file.tensors]
        self.merged.gather(placed, self.cancelled, self._tell)
        for file in self.plan.files:
            if file.name in self.folder.finished:
                self.bytes_done += file.size
                self.tensors_done += len(file.tensors)
                self._report(file)
            elif file.kind == "manifest":
                others = {one.name: self.folder.finished[one.name] for one in self.plan.files if one is not file}
                self._count(file, self.folder.write(file.name, manifest_of(self.plan, others)).size)
            else:
                self._stream(file)
        return self.written

    def _stream(self, file: PlannedFile) -> None:
        ends = [placed.offset + placed.task.nbytes for placed in file.tensors]
        done_before = self.tensors_done
        passed = 0
        with self.folder.file(file.name, file.size) as target:
            for block in self.merged.files[file.name].stream(cancelled=self.cancelled):
                target.append(block)
                while passed < len(ends) and ends[passed] <= target.offset:
                    passed += 1
                self.tensors_done = done_before + passed
                self._count(file, len(block))
            _verify_inputs(self.plan)  # a file is recorded as finished only if it is of these inputs
            target.finish()
        self._report(file)

    def _count(self, file: PlannedFile, size: int) -> None:
        self.bytes_done += size
        self.written += size
        self._report(file)

    def _report(self, file: PlannedFile) -> None:
        self._tell(file.name)

    def _tell(self, doing: str) -> None:
        if self.progress:
            total = self.plan.total_size
            self.progress(Progress(doing, self.bytes_done, total, self.tensors_done, len(self.plan.tensors)))


def _verify_inputs(plan: Plan) -> None:
    for checkpoint in plan.checkpoints.values():
        checkpoint.verify_unchanged()


def _require_space(plan: Plan, folder: StagedFolder) -> None:
    needed = plan.total_size - sum(entry.size for entry in folder.finished.values())
    free = shutil.disk_usage(folder.partial).free
    if needed + RESERVE > free:
        raise OutputError(
            f"{os.fspath(folder.out)}: the result needs {needed:,} more bytes and the disk has {free:,} free; "
            "free some space and run the same command again"
        )
