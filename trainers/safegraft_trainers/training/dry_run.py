"""What a run would do: what learns, what it costs, and the first batch. Trains and writes nothing.

Knows the trainer only as it stands before its first step.
"""

# transformers and torch type what is used here in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safegraft.cli.terminal import table
from safegraft_trainers.training.provenance import count

if TYPE_CHECKING:
    from safegraft_trainers.training.base import Choice

_ROWS_SHOWN = 4
_TOKENS_SHOWN = 600
_REPEATED = 4  # the same token more often in a row is shown once with a count
_BEGIN, _END = "⟦", "⟧"  # around the tokens that count in the loss


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes of one process without sharding, activations aside. optimizer: None where its kind is not known here."""

    weights: int
    gradients: int
    optimizer: int | None


def describe(trainer: Any, choice: "Choice") -> str:
    """A report for people, several lines."""
    batch = next(iter(trainer.get_train_dataloader()))
    parts = [
        parameter_table(trainer.model, choice),
        _cost(trainer, batch),
        _first_batch(batch, trainer.processing_class),
    ]
    parts += ["\n".join(f"note: {note}" for note in choice.notes)] if choice.notes else []
    return "\n\n".join(parts)


def named_parameters(model: Any, choice: "Choice") -> Iterator[tuple[str, str, Any]]:
    """(part, module, parameter) of every parameter, adapters included; what PEFT keeps an unused copy of once."""
    for name, parameter in model.named_parameters():
        if "original_module" not in name.split("."):  # the frozen twin of a module that PEFT trains as a whole
            part, module = choice.parts.module_of(name)
            yield part.value, module, parameter


def parameter_table(model: Any, choice: "Choice") -> str:
    """What learns and what stays, by module."""
    found = [(part, module, one.numel(), one.requires_grad) for part, module, one in named_parameters(model, choice)]
    rows = [
        (part, module or "(all)", f"{counts.total:,}", f"{counts.trained:,}", _how(counts.total, counts.trained))
        for (part, module), group in itertools.groupby(sorted(found), key=lambda row: row[:2])
        for counts in count((part, size, learns) for _, _, size, learns in group)
    ]
    total = count(("all", size, learns) for _, _, size, learns in found)[0]
    rows.append(("all", "", f"{total.total:,}", f"{total.trained:,}", f"{total.trained / total.total:.2%}"))
    return table(("part", "module", "parameters", "trained", ""), rows)


def _how(total: int, trained: int) -> str:
    if not trained:
        return "frozen"
    return "trains" if trained == total else "trains in part (an adapter, or some of its layers)"


def cost_of(model: Any, optimizer: str) -> Cost:
    """optimizer: by transformers' name for it (--optim)."""
    everything = list(model.parameters())
    learning = [one for one in everything if one.requires_grad]
    weights = sum(one.numel() * one.element_size() for one in everything)
    gradients = sum(one.numel() * one.element_size() for one in learning)
    values = sum(one.numel() for one in learning)
    if optimizer.startswith("adamw_torch"):
        return Cost(weights, gradients, 2 * gradients)  # two moments, in the parameter's own type
    if "adamw" in optimizer and "8bit" in optimizer:
        return Cost(weights, gradients, 2 * values)
    return Cost(weights, gradients, 0 if optimizer == "sgd" else None)


def _cost(trainer: Any, batch: Any) -> str:
    args = trainer.args
    cost = cost_of(trainer.model, str(args.optim.value))
    loader = trainer.get_train_dataloader()
    _, per_epoch, rows, _, rows_a_step, _, steps = trainer.set_initial_training_values(args, loader)
    state = f"not known for {args.optim.value}" if cost.optimizer is None else _bytes(cost.optimizer)
    lines = [
        ("weights", _bytes(cost.weights)),
        ("gradients", _bytes(cost.gradients)),
        ("optimizer state", state),
        ("rows", f"{rows:,}"),
        ("rows a step", f"{rows_a_step:,} (batch x accumulation x processes)"),
        ("steps", f"{steps:,} ({per_epoch:,} an epoch)"),
    ]
    if (tokens := _mean_tokens(batch)) is not None:
        lines.append(("tokens a step", f"about {round(tokens * rows_a_step):,}, by the first batch"))
    return "cost, for one process without sharding, activations aside\n" + table(("what", "how much"), lines)


def _mean_tokens(batch: Any) -> float | None:
    if not isinstance(batch, Mapping) or "attention_mask" not in batch:
        return None
    mask = batch["attention_mask"]
    return mask.sum().item() / len(mask)


def _bytes(size: int) -> str:
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}" if units[0] != "B" else f"{size} B"


def _first_batch(batch: Any, front: Any) -> str:
    tokenizer = getattr(front, "tokenizer", front)
    if not isinstance(batch, Mapping):  # online training: rows with prompts, whose answers are yet to be sampled
        shown = [f"  {row}" for row in itertools.islice(batch, _ROWS_SHOWN)]
        return "\n".join(["first batch, as it will be answered", *shown])
    head = [f"  {key}: {tuple(value.shape)} {value.dtype}" for key, value in batch.items() if hasattr(value, "shape")]
    counted, means = _counted(batch)
    lines = [f"first batch ({means})", *head]
    for row in range(min(_ROWS_SHOWN, len(batch["input_ids"]))):
        present = batch["attention_mask"][row].bool()
        ids = batch["input_ids"][row][present].tolist()
        flags = counted[row][present].tolist() if counted is not None else [False] * len(ids)
        lines.append(f"row {row}: {len(ids)} tokens, {sum(flags)} in the loss")
        lines.append("  " + decoded(ids, flags, tokenizer))
    if (left := len(batch["input_ids"]) - _ROWS_SHOWN) > 0:
        lines.append(f"and {left} more rows")
    return "\n".join(lines)


def _counted(batch: Mapping[str, Any]) -> tuple[Any | None, str]:
    """Which tokens count in the loss: a mask like input_ids, and how it is shown."""
    if "labels" in batch:
        return batch["labels"] != -100, f"{_BEGIN}tokens that count in the loss{_END}"
    if "completion_mask" in batch:
        return batch["completion_mask"].bool(), f"{_BEGIN}tokens that count in the loss{_END}"
    return None, "this trainer's batches do not say which tokens count in the loss"


def decoded(ids: Sequence[int], counted: Sequence[bool], tokenizer: Any) -> str:
    """Text with the tokens that count marked and long runs of one token (an image's) folded."""
    pieces: list[str] = []
    for marked, group in itertools.groupby(zip(ids, counted, strict=True), key=lambda pair: pair[1]):
        text = "".join(_folded((token for token, _ in group), tokenizer))
        pieces.append(f"{_BEGIN}{text}{_END}" if marked else text)
    text = "".join(pieces).replace("\n", "\\n")
    limit = _TOKENS_SHOWN * 8
    return text if len(text) <= limit else f"{text[:limit]} ..."


def _folded(ids: Iterable[int], tokenizer: Any) -> Iterator[str]:
    """Runs of different tokens decoded together, so that words stay whole."""
    plain: list[int] = []
    for token, group in itertools.groupby(ids):
        times = sum(1 for _ in group)
        if times < _REPEATED:
            plain += [token] * times
            continue
        yield tokenizer.decode(plain)
        yield f"{tokenizer.decode([token])}x{times}"
        plain = []
    yield tokenizer.decode(plain)
