"""A merge as the server remembers it: its state, its plan in brief, how far it is and how it ended. Data only."""

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from safegraft.errors import SafegraftError

Retention = Literal["keep", "none"]


class JobState(enum.StrEnum):
    """Mirrors MergeState in merge.proto, which says what each means."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return not NEXT[self]


NEXT: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        JobState.QUEUED: frozenset({JobState.QUEUED, JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
        JobState.RUNNING: frozenset(JobState),
        JobState.SUCCEEDED: frozenset(),
        JobState.FAILED: frozenset(),
        JobState.CANCELLED: frozenset(),
    }
)


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """What of a plan is kept: enough to serve its files and to check that a later plan is the same."""

    digest: str
    host_model: str
    files: tuple[tuple[str, int], ...]  # name, size in bytes; in the order of computation
    warnings: tuple[str, ...]
    tensors: int
    uploads: tuple[str, ...]  # digests of the uploaded checkpoints among the inputs
    modified: (
        int  # nanoseconds since the epoch: the last change of inputs that the digest only samples; 0: there are none
    )
    pins: tuple[tuple[str, str], ...] = ()  # models of the Hub as the recipe names them, and the commits they are at

    @property
    def total_size(self) -> int:
        return sum(size for _, size in self.files)

    def size_of(self, file: str) -> int | None:
        """The file's size in bytes; None when the merge has no such file."""
        return next((size for name, size in self.files if name == file), None)


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Done so far, over the whole merge; the totals are the plan's."""

    bytes_done: int = 0
    tensors_done: int = 0
    current_file: str = ""


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a merge or a publication failed: a SafegraftError's reason and problems."""

    reason: str
    problems: tuple[tuple[str, str], ...]  # where, message

    @classmethod
    def of(cls, error: SafegraftError) -> "JobError":
        return cls(error.reason, tuple((one.where, one.message) for one in error.problems))


@dataclass(frozen=True, slots=True)
class Job:
    """One merge. Times are microseconds since the epoch; `deaths` counts workers that died over it."""

    id: str
    state: JobState
    revision: int
    created: int
    updated: int
    request_id: str | None
    fingerprint: str
    recipe: str
    max_shard_size: int
    threads: int
    retention: Retention
    plan: PlanSummary
    progress: JobProgress = JobProgress()
    digests: Mapping[str, str] = field(default_factory=dict[str, str])  # sha256 by file name, as far as known
    error: JobError | None = None
    deaths: int = 0
    hub_credential: str = ""  # the name of that with which inputs on the Hub are read; "": none was named


def now() -> int:
    """Microseconds since the epoch, as jobs hold times."""
    return time.time_ns() // 1000
