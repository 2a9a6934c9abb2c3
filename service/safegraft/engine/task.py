"""What a plan is: the files of the result, and one task for each of its tensors.

Only data. `plan.py` fills it in from headers; `execute.py` turns it into bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.rows import RowLayout
from safegraft.methods.contract import MergeMethod
from safegraft.recipe.model import Recipe

Action = Literal["merge", "copy"]


@dataclass(frozen=True, slots=True)
class Contribution:
    """One model's tensor in a task. `parameters` is None for the base and for copies."""

    model: str
    tensor: str
    parameters: Any = None


@dataclass(frozen=True, slots=True)
class TensorTask:
    """How one tensor of the result is made.

    name, shape: as in the host model. dtype: of the result.
    inputs: in recipe order; for a copy, the host's own tensor alone.
    rows: for vocabulary tensors whose rows differ, which rows are merged; None otherwise.
    note: why it is copied, or what is special about the merge.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    action: Action
    inputs: tuple[Contribution, ...]
    base: Contribution | None = None
    method: str | None = None
    parameters: Any = None
    rows: RowLayout | None = None
    compute_dtype: DType = DType.F32
    seed: int = 0
    note: str = ""

    @property
    def contributions(self) -> tuple[Contribution, ...]:
        """Inputs, then the base: the order of `rows`' sources."""
        return self.inputs if self.base is None else (*self.inputs, self.base)

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """Where a task's bytes lie in its file."""

    task: TensorTask
    offset: int  # of the first byte, from the start of the file


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of the result. `content` is set for files known in full when planning;
    `header` and `tensors` for weight files. The manifest has neither: it holds the digests of the others."""

    name: str
    size: int
    kind: Literal["weights", "index", "sidecar", "card", "manifest"]
    content: bytes | None = None
    header: bytes = b""
    tensors: tuple[PlannedTensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """bytes_read, bytes_written, peak_memory_bytes: bytes. merged_elements: a count.
    seconds: a rough guess at nominal speed (see plan.py), for choosing between now and tonight."""

    bytes_read: int
    bytes_written: int
    peak_memory_bytes: int
    merged_elements: int
    seconds: float


@dataclass(frozen=True, repr=False)
class Plan:
    """Everything that will be computed. Equal digests give equal bytes.

    names: model reference -> the public name it goes by in the result (never a path).
    checkpoints: model reference -> open checkpoint. base_model: as the recipe has it.
    """

    recipe: Recipe
    digest: str
    host_model: str
    names: Mapping[str, str]
    checkpoints: Mapping[str, Checkpoint]
    methods: Mapping[str, MergeMethod]
    versions: Mapping[str, str]
    tensors: tuple[TensorTask, ...]
    files: tuple[PlannedFile, ...]
    warnings: tuple[str, ...]
    cost: Cost
    total_size: int  # bytes of all files

    @property
    def host(self) -> Checkpoint:
        return self.checkpoints[self.host_model]

    def __repr__(self) -> str:
        merged = sum(task.action == "merge" for task in self.tensors)
        return f"<Plan {self.digest[:12]}: {merged} of {len(self.tensors)} tensors merged into {self.host_model}>"

    def to_dict(self) -> dict[str, Any]:
        """The document that `safegraft plan --json` prints."""
        return {
            "digest": self.digest,
            "host_model": self.host_model,
            "files": [{"name": file.name, "size_bytes": file.size} for file in self.files],
            "tensors": [_describe(task) for task in self.tensors],
            "warnings": list(self.warnings),
            "cost": {
                "bytes_read": self.cost.bytes_read,
                "bytes_written": self.cost.bytes_written,
                "peak_memory_bytes": self.cost.peak_memory_bytes,
                "merged_elements": self.cost.merged_elements,
                "seconds": round(self.cost.seconds, 3),
            },
        }

    def close(self) -> None:
        for checkpoint in self.checkpoints.values():
            checkpoint.close()


def _describe(task: TensorTask) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": task.name,
        "action": task.action,
        "method": task.method,
        "dtype": str(task.dtype),
        "shape": list(task.shape),
        "inputs": [{"model": one.model, "tensor": one.tensor} for one in task.inputs],
        "base": {"model": task.base.model, "tensor": task.base.tensor} if task.base else None,
    }
    if task.rows is not None:
        described["rows_merged"] = task.rows.shared_rows
    if task.note:
        described["note"] = task.note
    return described
