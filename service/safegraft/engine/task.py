"""What a plan is: the files of the result, and one task for each of its tensors.

Only data. `plan.py` fills it in from headers; `execute.py` turns it into bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from safegraft.checkpoint.dtypes import DType, float_name
from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.rows import RowLayout
from safegraft.methods.contract import Context, MergeMethod, Modifier
from safegraft.recipe.model import Recipe

if TYPE_CHECKING:
    from safegraft.calibration import Request

REDUCTION_BLOCK = 1 << 17  # elements: statistics are summed over these, whatever the engine's cuts are

Action = Literal["merge", "copy"]
StatisticKey = tuple[str, str, str]  # a method, the name in its `requires.calibration`, an input's model


@dataclass(frozen=True, slots=True)
class Contribution:
    """One model's tensor in a task. `parameters` is None for the base, for models with a role and for copies."""

    model: str
    tensor: str
    parameters: Any = None


@dataclass(frozen=True, slots=True)
class Modification:
    """A modifier at work on a task, with its parameters there."""

    modifier: str
    parameters: Any


@dataclass(frozen=True, slots=True)
class Known:
    """What a method found out before its first cut of a tensor: in the tensor, and over all of them."""

    state: Any = None
    survey: Any = None


@dataclass(frozen=True, slots=True)
class TensorTask:
    """How one tensor of the result is made.

    name, shape: as in the host model. dtype: of the result.
    inputs: in recipe order, then the models with a role in the method's order; for a copy, the host's own tensor alone.
    layer, layers: its place among the layers of its stack, and their number; None and 0 outside stacks.
    vocabulary: whether a row stands for a token. language: whether it is of the language model.
    stored: the widest dtype among the contributions, or the recipe's.
    modifications: in order; what they change is the difference from contribution number `modified_from`.
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
    layer: int | None = None
    layers: int = 0
    vocabulary: bool = False
    language: bool = True
    stored: DType = DType.F32
    modifications: tuple[Modification, ...] = ()
    modified_from: int = 0

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

    def context(self) -> Context:
        """What a method may know of the whole tensor before anything was prepared."""
        return Context(
            tensor=self.name,
            shape=self.rows.shared_shape if self.rows else self.shape,
            position=0,
            seed=self.seed,
            parameters=self.parameters,
            state=None,
            layer=self.layer,
            layers=self.layers,
            vocabulary=self.vocabulary,
            language=self.language,
            stored=float_name(self.stored),
            out=float_name(self.dtype),
        )


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
    warnings: what a reader should know; equal plans have equal ones. remarks: the same, of this time's planning only.
    checkpoints: model reference -> open checkpoint. statistics: what has to be known of models at work.
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
    remarks: tuple[str, ...] = ()
    modifiers: Mapping[str, Modifier] = field(default_factory=dict[str, Modifier])
    statistics: "Mapping[StatisticKey, Request]" = field(default_factory=dict["StatisticKey", "Request"])

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
            "models": [{"reference": model, "name": self.names[model]} for model in self.checkpoints],
            "files": [{"name": file.name, "size_bytes": file.size} for file in self.files],
            "tensors": [_describe(task) for task in self.tensors],
            "warnings": [*self.warnings, *self.remarks],
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
