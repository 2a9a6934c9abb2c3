"""What a plan does to which part of the model, for readers: a table of parts, and the tensors that stand out in theirs.

Parts are told by the host model's anatomy, else by the words that models use for their modules: a table to read, for
display alone. Nothing is merged by it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safegraft.engine.anatomy import is_multimodal, language_stack, split_layer, vocabulary_tensors
from safegraft.engine.task import Plan, TensorTask
from safegraft.hub.markdown import code, counted, details, table

EMBEDDINGS, LAYERS, OUTSIDE, HEAD = "token embeddings", "language layers", "language, outside its layers", "output head"
PROJECTOR, VISION, AUDIO, OTHER = "projector", "vision tower", "audio tower", "other"
_ORDER = (EMBEDDINGS, LAYERS, OUTSIDE, HEAD, PROJECTOR, VISION, AUDIO, OTHER)

# Words of modules' names. What projects is a projector, wherever it lies; the patterns are tried in this order.
_PROJECTORS = "projector|connector|merger|aligner|resampler|abstractor|perceiver|^mlp1$|mm_proj|embed_vision"
_WORDS = (
    (re.compile(_PROJECTORS), PROJECTOR),
    (re.compile("audio|speech|whisper"), AUDIO),
    (re.compile("vision|visual|image|patch|vit$|siglip|clip|video"), VISION),
)
_HEAD = re.compile(r"(^|\.)(lm_head|output|embed_out|head)(\.|$)")
_MOST_NAMES = 40  # that are listed; further ones are counted


@dataclass(frozen=True, slots=True)
class _Row:
    """Tensors of one part that are treated alike. treatment: Markdown."""

    part: str
    treatment: str
    tasks: Sequence[TensorTask]

    @property
    def parameters(self) -> int:
        return sum(task.elements for task in self.tasks)


def tensor_table(plan: Plan, public: Callable[[str], str]) -> str:
    """A row for each part of the model that is treated alike; the tensors that stand out, to unfold.

    public: a note as it may be shown, with the models' public names.
    """
    rows = _rows(plan, public)
    cells = [
        [row.part, row.treatment.replace("|", "\\|"), f"{len(row.tasks):,}", in_short(row.parameters)] for row in rows
    ]
    parts = [table(["part of the model", "what was done", "tensors", "parameters"], cells)]
    largest = {row.part: row for row in reversed(rows)}  # rows are in order, the largest of a part first
    if odd := [row for row in rows if row is not largest[row.part]]:
        parts.append(details("Tensors that are not treated as most of their part", "\n\n".join(map(_names, odd))))
    return "\n\n".join(parts)


def in_short(count: int) -> str:
    """A number of parameters in three digits: '812', '4.10 K', '6.74 B'."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            value = count / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return str(count)


def _rows(plan: Plan, public: Callable[[str], str]) -> list[_Row]:
    part_of = _Parts(plan)
    groups: dict[tuple[str, str], list[TensorTask]] = {}
    for task in plan.tensors:
        groups.setdefault((part_of(task), _treatment(task, public)), []).append(task)
    rows = [_Row(*key, tasks) for key, tasks in groups.items()]
    return sorted(rows, key=lambda row: (_ORDER.index(row.part), -row.parameters, row.treatment))


class _Parts:
    """Which part of the host model a tensor belongs to."""

    def __init__(self, plan: Plan) -> None:
        self._vocabulary = vocabulary_tensors(plan.host)
        self._stack = language_stack(plan.host)
        self._is_language = not is_multimodal(plan.host.config)

    def __call__(self, task: TensorTask) -> str:
        if task.name in self._vocabulary:
            return HEAD if _HEAD.search(task.name) else EMBEDDINGS
        place = split_layer(task.name)
        if self._stack is not None and place is not None and place[0] == self._stack.prefix:
            return LAYERS
        if not self._is_language:
            words = task.name.lower().split(".")
            for pattern, part in _WORDS:
                if any(pattern.search(word) for word in words):
                    return part
        if self._is_language or self._is_beside_the_layers(task.name):
            return OUTSIDE
        return OTHER

    def _is_beside_the_layers(self, name: str) -> bool:
        return self._stack is not None and name.startswith(self._stack.prefix.rpartition(".")[0] + ".")


def _treatment(task: TensorTask, public: Callable[[str], str]) -> str:
    done = "copied from the host" if task.action == "copy" else f"merged by {code(task.method or '')}"
    return f"{done}: {code(public(task.note))}" if task.note else done


def _names(row: _Row) -> str:
    """Tensors of one name in several layers go together."""
    names: dict[str, int] = {}
    for task in row.tasks:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", task.name)
        names[pattern] = names.get(pattern, 0) + 1
    lines = [f"- {code(name)}" + (f" ({count})" if count > 1 else "") for name, count in names.items()]
    if len(lines) > _MOST_NAMES:
        left = sum(list(names.values())[_MOST_NAMES:])
        lines = [*lines[:_MOST_NAMES], f"- and {counted(left, 'more tensor')}"]
    return f"{row.part}, {row.treatment}\n\n" + "\n".join(lines)
