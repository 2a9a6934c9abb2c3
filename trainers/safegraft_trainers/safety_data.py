"""The data that teaches a model to refuse, and how it joins benign data.

Shared by safety_sft.py, safety_grpo.py and multitask.py. Knows data formats; nothing of models and losses.
"""

# datasets types its Dataset in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from safegraft.errors import UsageError
from safegraft_trainers.training.arguments import CommonArguments

UNSAFE = "unsafe"  # the column that says whether a prompt is harmful
CHAT_COLUMNS = ["images", "prompt", "completion"]


@dataclass
class SafetyDataArguments(CommonArguments):
    """Where harmful prompts and their harmless look-alikes come from."""

    safety_data: str | None = field(
        default=None,
        metadata={
            "help": "VLGuard's format: images with unsafe instructions, which are refused, and safe ones, which are "
            "answered. A JSON, JSONL or parquet file, a folder saved by datasets, or a Hub name in the local cache."
        },
    )
    safety_images: str | None = field(default=None, metadata={"help": "The folder that --safety_data's images lie in."})
    refusal_data: str | None = field(
        default=None,
        metadata={"help": "Text only: harmful prompts and their refusals, as prompt/response or messages."},
    )
    borderline_data: str | None = field(
        default=None,
        metadata={
            "help": "Text only: harmless prompts that look harmful, and their answers. They teach where refusing ends."
        },
    )


@dataclass(frozen=True, slots=True)
class Piece:
    """Data of one origin. name: as the user gave it. dataset: columns images, prompt, completion and unsafe (bool)."""

    name: str
    dataset: Any


def load_safety(script: SafetyDataArguments) -> list[Piece]:
    """All safety data that `script` names.

    Raises UsageError when it names none, InputError for files that cannot be used.
    """
    from safegraft_trainers.data.text_chat import load_chat
    from safegraft_trainers.data.vlguard import load_vlguard

    pieces: list[Piece] = []
    if script.safety_data:
        pieces.append(Piece(script.safety_data, load_vlguard(script.safety_data, script.safety_images)))
    if script.refusal_data:
        pieces.append(Piece(script.refusal_data, labelled(load_chat(script.refusal_data), unsafe=True)))
    if script.borderline_data:
        pieces.append(Piece(script.borderline_data, labelled(load_chat(script.borderline_data), unsafe=False)))
    if not pieces:
        raise UsageError("no safety data: give --safety_data (VLGuard's format), --refusal_data, or both")
    return pieces


def labelled(dataset: Any, *, unsafe: bool) -> Any:
    """The dataset with a column that says the same of every row."""
    return dataset.add_column(UNSAFE, [unsafe] * len(dataset))


def together(pieces: Sequence[Piece], *columns: str) -> Any:
    """All rows of all pieces, in their order, with these columns (default: those that supervised training reads)."""
    from datasets import concatenate_datasets

    kept = [*(columns or CHAT_COLUMNS)]
    return concatenate_datasets([piece.dataset.select_columns(kept) for piece in pieces])


def drawn(safety: Any, benign: Any, *, safety_share: Fraction, size: int, seed: int) -> tuple[Any, tuple[str, ...]]:
    """`size` rows of both, shuffled, `safety_share` of them safety; and what a reader should know about them."""
    from safegraft_trainers.data.mixing import draw

    mixture = draw([(safety, float(safety_share)), (benign, float(1 - safety_share))], size, seed)
    of_safety, of_benign = mixture.taken
    return mixture.dataset, (f"{size} rows: {of_safety} safety, {of_benign} benign", *mixture.notes)


def as_read_by(network: Any, rows: Any) -> Any:
    """The rows as `network` reads them: without images and content parts where it is a text-only model.

    Raises InputError when rows have images and the model sees none.
    """
    from safegraft_trainers.data.columns import text_only
    from safegraft_trainers.training.parts import is_multimodal

    return rows if is_multimodal(network.config) else text_only(rows)


def refuse_evaluation(training: Any) -> None:
    """Raises UsageError when a run is told to evaluate: a loss on safety data does not say how safe a model is."""
    if training.eval_strategy != "no":
        raise UsageError(
            "--eval_strategy: there is none here; keep checkpoints and compare them by `safegraft evaluate`"
        )


def counted(pieces: Sequence[Piece]) -> str:
    """For the model card: how many prompts are harmful."""
    unsafe = sum(sum(piece.dataset[UNSAFE]) for piece in pieces)
    total = sum(len(piece.dataset) for piece in pieces)
    return f"{total} safety rows: {unsafe} harmful prompts, {total - unsafe} harmless ones"
