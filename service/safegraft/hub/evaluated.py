"""Writes an evaluation into a model card: numbers for the Hub to read, tables for people.

A card that safegraft made for a merge warns that nobody evaluated it; the results take that warning's place. Doing it
again replaces what was written. Knows cards and evaluations as data, no model.
"""

import re
from typing import Any

import yaml

from safegraft.errors import InputError, Problem, UsageError
from safegraft.hub.evaluation import AxisScore, Evaluated, EvaluationDocument, read_evaluation
from safegraft.hub.evaluation_section import evaluation_section, judge_shown, label

__all__ = ["EvaluationDocument", "has_evaluation", "has_warning", "read_evaluation", "with_evaluation"]

CARD = "README.md"
BEGIN, END = "<!-- safegraft evaluation: begin -->", "<!-- safegraft evaluation: end -->"
# Whole lines: a stranger's name in the card may hold anything, but begins none.
_SECTION = re.compile(rf"^{re.escape(BEGIN)}$.*?^{re.escape(END)}$\n?", re.DOTALL | re.MULTILINE)
_WARNING = re.compile(r"^> \[!WARNING\]\n> \*\*This merge has not been evaluated\.\*\*.*\n(?:>.*\n)*", re.MULTILINE)
_PLOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(png|jpg|svg|webp)")

# Axis -> metric on the Hub, and its words.
_METRICS = {
    "text_safety": ("attack_success_rate", "attack success rate, %, lower is better"),
    "multimodal_safety": ("attack_success_rate", "attack success rate, %, lower is better"),
    "exaggerated_safety": ("refusal_rate", "refusal rate on harmless requests, %, lower is better"),
    "helpfulness": ("accuracy", "accuracy, %, higher is better"),
    "bias": ("stereotype_rate", "stereotyped choices, %, lower is better"),
}


def with_evaluation(
    card: bytes, evaluation: EvaluationDocument, plot: str | None = None, *, name: str | None = None
) -> bytes:
    """The card with the evaluation in the place of an older one, else of the warning, else at its end.

    Metadata of other results stays; of the same data set and metric, ours replace them. A text without metadata gets
    some.

    Args:
        plot: the name of a picture of the trade-off that lies beside the card.
        name: of the model, for its results on the Hub; default: what the card has, else what the evaluation calls it.

    Raises InputError when the card's metadata cannot be used, UsageError for a plot of another kind.
    """
    if plot is not None and not _PLOT.fullmatch(plot):
        raise UsageError(f"{plot!r} is no name of a picture: write letters, digits and one of .png, .jpg, .svg, .webp")
    parsed = _parsed(card)
    ours = _results(evaluation.evaluated)
    replaced = {(one.dataset_name, one.metric_type) for one in ours}
    there: list[Any] = parsed.data.eval_results or []
    kept = [one for one in there if (one.dataset_name, one.metric_type) not in replaced]
    parsed.data.eval_results = [*kept, *ours]
    parsed.data.model_name = parsed.data.model_name or name or label(evaluation.evaluated)
    section = f"{BEGIN}\n\n## Evaluation\n\n{evaluation_section(evaluation, plot)}\n\n{END}\n"
    parsed.text = _with_section(parsed.text, section)
    return str(parsed).encode()


def has_evaluation(card: bytes) -> bool:
    """Whether a card holds an evaluation that was written by `with_evaluation`."""
    return _SECTION.search(_plain(card.decode("utf-8", "replace"))) is not None


def has_warning(card: bytes) -> bool:
    """Whether a card warns that nobody evaluated the model."""
    return _WARNING.search(_plain(card.decode("utf-8", "replace"))) is not None


def _plain(text: str) -> str:
    """As everything here writes it, whatever an editor has made of it: its head first, and plain ends of lines."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")


def _parsed(card: bytes) -> Any:
    from huggingface_hub import ModelCard

    try:
        text = _plain(card.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(Problem(CARD, "cannot be read: it is not UTF-8 text")) from error
    try:
        return ModelCard(text if text.startswith("---\n") else f"---\nlibrary_name: transformers\n---\n\n{text}")
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(Problem(CARD, f"its metadata cannot be used: {error}")) from error


def _with_section(text: str, section: str) -> str:
    for old in (_SECTION, _WARNING):
        if old.search(text):
            return old.sub(lambda _: section, text, count=1)
    return f"{text.rstrip()}\n\n{section}"


def _results(model: Evaluated) -> list[Any]:
    """One result for each suite, or for each axis of a suite that has several; and one for each measured score."""
    from huggingface_hub import EvalResult

    results: list[Any] = []
    for score in model.scores:
        if score.dataset is None:
            continue
        metric, words = _METRICS[score.axis]
        results.append(
            EvalResult(
                task_type="image-text-to-text" if score.images else "text-generation",
                dataset_type=score.dataset,
                dataset_name=score.name,
                dataset_config=score.axis
                if score.name.endswith(f"/{score.axis}")
                else None,  # keeps the axes of a suite apart
                metric_type=metric,
                metric_name=words,
                metric_value=_hundredths(score.value),
                metric_args=_arguments(score),
            )
        )
    results += [
        EvalResult(
            task_type="text-generation",
            dataset_type=score.name.rpartition("/")[0] or score.name,
            dataset_name=score.name.rpartition("/")[0] or score.name,
            metric_type=score.name.rpartition("/")[2],
            metric_value=score.value,
            metric_args={"interval_95": [score.low, score.high], "n": score.n},
        )
        for score in model.measured
    ]
    return results


def _arguments(score: AxisScore) -> dict[str, Any]:
    interval = [_hundredths(score.low), _hundredths(score.high)]
    return {"interval_95": interval, "n": score.n, **({"judge": judge_shown(score.judge)} if score.judge else {})}


def _hundredths(value: float) -> float:
    return round(100 * value, 2)
