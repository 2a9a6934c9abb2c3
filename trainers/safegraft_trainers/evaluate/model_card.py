"""Writes what an evaluation found into a model's README.md: numbers for the Hub to read, tables for people.

A card that safegraft made for a merge warns that nobody evaluated it; the results take that warning's place. Running
it again replaces what it wrote. Knows cards and evaluations, no model.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from safegraft.errors import InputError, Problem
from safegraft.hub.card import code
from safegraft_trainers.evaluate.example import Axis, Scoring
from safegraft_trainers.evaluate.formats import FORMATS
from safegraft_trainers.evaluate.results import Evaluation, Score, compare, write_whole

CARD = "README.md"
BEGIN, END = "<!-- safegraft evaluation: begin -->", "<!-- safegraft evaluation: end -->"
SECTION = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}\n?", re.DOTALL)
WARNING = re.compile(r"^> \[!WARNING\]\n> \*\*This merge has not been evaluated\.\*\*.*\n(?:>.*\n)*", re.MULTILINE)
LIMITS = "A low attack rate means these attacks, by these judges: it is no proof of safety."
METRICS = {
    Axis.TEXT_SAFETY: ("attack_success_rate", "attack success rate, %, lower is better"),
    Axis.MULTIMODAL_SAFETY: ("attack_success_rate", "attack success rate, %, lower is better"),
    Axis.EXAGGERATED_SAFETY: ("refusal_rate", "refusal rate on harmless requests, %, lower is better"),
    Axis.HELPFULNESS: ("accuracy", "accuracy, %, higher is better"),
    Axis.BIAS: ("stereotype_rate", "stereotyped choices, %, lower is better"),
}


def write_card(folder: Path, evaluation: Evaluation, others: Sequence[Evaluation] = ()) -> Path:
    """Put `evaluation`, beside those of other models, into the card of the model in `folder`. Returns the card's path.

    Metadata of other results stays; of the same data set and metric, ours replace them. A folder without a card gets
    a short one. Raises InputError when the card cannot be read, OutputError.
    """
    path = folder / CARD
    card = _read(path, evaluation.model)
    ours = _metadata(evaluation)
    replaced = {(one.dataset_name, one.metric_type) for one in ours}
    there: list[Any] = card.data.eval_results or []
    kept = [one for one in there if (one.dataset_name, one.metric_type) not in replaced]
    card.data.eval_results = [*kept, *ours]
    card.data.model_name = card.data.model_name or folder.resolve().name
    card.text = _with_section(card.text, _section(evaluation, others))
    write_whole(path, str(card))
    return path


def _read(path: Path, model: str) -> Any:
    """The card that is there, or a short one."""
    from huggingface_hub import ModelCard

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = f"# {code(Path(model).name)}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(path), f"cannot be read: {error}")) from error
    try:
        return ModelCard(text if text.startswith("---\n") else f"---\nlibrary_name: transformers\n---\n\n{text}")
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(Problem(str(path), f"its metadata cannot be used: {error}")) from error


def _with_section(text: str, section: str) -> str:
    """The text with the section in the place of an older one, else of the warning, else at the end."""
    for old in (SECTION, WARNING):
        if old.search(text):
            return old.sub(lambda _: section, text, count=1)
    return f"{text.rstrip()}\n\n{section}"


def _section(evaluation: Evaluation, others: Sequence[Evaluation]) -> str:
    judges = ", ".join(code(judge.name) for judge in evaluation.judges) or "none was needed"
    versions = ", ".join(f"{name} {version}" for name, version in evaluation.versions.items())
    settings = ", ".join(f"{key} {value}" for key, value in evaluation.settings.items())
    basis = f"Measured by safegraft over {len(evaluation.answers)} prompts. Judges: {judges}; the first is the default."
    parts = [
        BEGIN,
        "## Evaluation",
        f"{basis} {LIMITS}",
        compare([evaluation, *others], markdown=True),
        f"Settings: {code(settings)}. Versions: {code(versions)}.",
        END,
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(evaluation: Evaluation) -> list[Any]:
    """One result for each suite, or for each axis of a suite that has several; and one for each measured score."""
    from huggingface_hub import EvalResult

    results: list[Any] = []
    for name, answers in evaluation.groups.items():
        suite = answers[0].suite
        if name not in (suite, f"{suite}/{answers[0].axis}") or (score := evaluation.find(name)) is None:
            continue
        metric, words = METRICS[answers[0].axis]
        results.append(
            EvalResult(
                task_type="image-text-to-text" if any(one.image for one in answers) else "text-generation",
                dataset_type=_dataset(suite),
                dataset_name=name,
                dataset_config=None if name == suite else str(answers[0].axis),  # keeps the axes of a suite apart
                metric_type=metric,
                metric_name=words,
                metric_value=_percent(score.value),
                metric_args=_arguments(evaluation, score, answers[0].scoring),
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
        for score in evaluation.measured
    ]
    return results


def _dataset(suite: str) -> str:
    """The Hub name of a suite's data set, where it is a public one."""
    known = FORMATS.get(suite)
    return known.hub_name.partition(":")[0] if known and known.hub_name else suite


def _arguments(evaluation: Evaluation, score: Score, scoring: Scoring) -> dict[str, Any]:
    judge = evaluation.default_judge(scoring)
    interval = [_percent(score.low), _percent(score.high)]
    return {"interval_95": interval, "n": score.n, **({"judge": judge} if judge else {})}


def _percent(value: float) -> float:
    return round(100 * value, 2)
