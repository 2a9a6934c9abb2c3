"""Several models side by side: the axes with their intervals, then suites, differences, and what was left out.

Text for a terminal, or Markdown for a file. Knows evaluations only.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safegraft.cli.terminal import table
from safegraft.hub.markdown import cell, code
from safegraft_trainers.evaluate.example import LOWER_IS_BETTER, Axis
from safegraft_trainers.evaluate.results import Evaluation, Score, difference

TITLES = {
    Axis.TEXT_SAFETY: "attacks by text",
    Axis.MULTIMODAL_SAFETY: "attacks with an image",
    Axis.EXAGGERATED_SAFETY: "over-refusal",
    Axis.HELPFULNESS: "helpfulness",
    Axis.BIAS: "bias",
}
NOTHING = "-"
FEWER = "*"  # behind a score over other prompts than the first model's


def comparison(evaluations: Sequence[Evaluation], *, markdown: bool) -> str:
    """The tables that hold something, each under its title. Rates are percent."""
    first = labels(evaluations)[0]
    parts = [
        ("Percent, with 95 % intervals", _axes(evaluations, cell if markdown else str)),
        ("Suites", _suites(evaluations)),
        (
            f"Difference from {code(first) if markdown else first}, in points, prompt by prompt",
            _differences(evaluations),
        ),
        ("Agreement of judges", _agreements(evaluations)),
    ]
    shown = [f"{_title(title, markdown)}\n{_grid(rows, markdown)}" for title, rows in parts if len(rows) > 1]
    notes = list(remarks(evaluations, markdown=markdown))
    if notes:
        shown.append("\n".join(f"- {note}" if markdown else note for note in notes))
    return "\n\n".join(shown)


def remarks(evaluations: Sequence[Evaluation], *, markdown: bool = False) -> Iterator[str]:
    """What a reader has to know before comparing: prompts not asked, answers not judged or not understood."""
    quote = code if markdown else str
    names = [quote(label) for label in labels(evaluations)]
    if any(_asterisk(evaluations, one, name) for one in evaluations for name in _every_name(evaluations)):
        yield f"{quote(FEWER)} over other prompts than {names[0]}: not to be compared with it"
    for one, name in zip(evaluations, names, strict=True):
        for reason, count in one.skipped.items():
            yield f"{name}: {count} of {len(one.answers)} prompts were not asked: {reason}"
        for judge in one.judges:
            told = [answer.verdicts[judge.name].error for answer in one.answers if judge.name in answer.verdicts]
            if errors := [error for error in told if error]:
                yield f"{name}: {len(errors)} answers have no verdict by {quote(judge.name)}, e.g. {quote(errors[0])}"
        if unparsed := sum(answer.mark is not None and answer.mark.unparsed for answer in one.answers):
            yield f"{name}: {unparsed} answers name no choice and count as wrong"


def percent(score: Score | None, mark: str = "") -> str:
    """'47.5 [35.0, 60.0]'; what is no rate, such as a perplexity, as it is."""
    if score is None:
        return NOTHING
    if not -1 <= score.low <= score.high <= 1:
        return f"{score.value:.4g} [{score.low:.4g}, {score.high:.4g}]{mark}"
    return f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]{mark}"


def _axes(evaluations: Sequence[Evaluation], quote: Callable[[str], str]) -> list[list[str]]:
    """A row for each axis, and for each further judge of it; a column for each model."""
    names = [name for name in _every_name(evaluations) if name.partition("@")[0] in list(Axis)]
    rows = [["", "better", "n", *labels(evaluations)]]
    for name in names:
        axis, _, judge = name.partition("@")
        title = TITLES[Axis(axis)] + (f", by {quote(judge)}" if judge else "")
        rows.append(
            [title, _better(LOWER_IS_BETTER[Axis(axis)]), _counts(evaluations, name), *_cells(evaluations, name)]
        )
    return rows


def _suites(evaluations: Sequence[Evaluation]) -> list[list[str]]:
    names = [name for name in _every_name(evaluations) if name.partition("@")[0] not in list(Axis)]
    rows = [["suite", "better", "n", *labels(evaluations)]]
    for name in names:
        lower = next(score.lower_is_better for one in evaluations if (score := one.find(name)))
        rows.append([name, _better(lower), _counts(evaluations, name), *_cells(evaluations, name)])
    return rows


def _counts(evaluations: Sequence[Evaluation], name: str) -> str:
    """How many answers count: '60', or '60-120' when the models differ."""
    counts = sorted({score.n for one in evaluations if (score := one.find(name))})
    return "-".join(map(str, counts if len(counts) < 2 else (counts[0], counts[-1])))


def _differences(evaluations: Sequence[Evaluation]) -> list[list[str]]:
    first, *others = evaluations
    rows = [["", "better", *labels(evaluations)[1:]]]
    for axis in Axis:
        found = [difference(first, other, axis) for other in others]
        if any(found):
            cells = [
                f"{100 * one.value:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}] of {one.n}" if one else NOTHING
                for one in found
            ]
            rows.append([TITLES[axis], _better(LOWER_IS_BETTER[axis]), *cells])
    return rows if others else rows[:1]


def _agreements(evaluations: Sequence[Evaluation]) -> list[list[str]]:
    rows = [["judges", "question", "model", "agree", "Cohen's kappa", "n"]]
    for one, label in zip(evaluations, labels(evaluations), strict=True):
        for found in one.agreements:
            kappa = NOTHING if found.kappa is None else f"{found.kappa:.2f}"
            judges = " and ".join(found.judges)
            rows.append([judges, found.question, label, f"{100 * found.raw:.1f} %", kappa, str(found.n)])
    return rows


def _every_name(evaluations: Sequence[Evaluation]) -> list[str]:
    """Of all scores of all models, in their own order; those by the default judge once, without its name."""
    names = dict.fromkeys(name for one in evaluations for name in one.candidates())
    default = {one.judges[0].name for one in evaluations if one.judges}
    named = [name for name in names if not any(name.endswith(f"@{judge}") for judge in default)]
    return [name for name in named if any(one.find(name) for one in evaluations)]


def labels(evaluations: Sequence[Evaluation]) -> list[str]:
    """The models' names, without the folders that lead there where the last names tell them apart."""
    names = [one.model for one in evaluations]
    short = [Path(name).name if "/" in name and "+" not in name else name for name in names]
    return short if len(set(short)) == len(set(names)) else names


def _cells(evaluations: Sequence[Evaluation], name: str) -> list[str]:
    return [percent(one.find(name), _asterisk(evaluations, one, name)) for one in evaluations]


def _asterisk(evaluations: Sequence[Evaluation], one: Evaluation, name: str) -> str:
    first = evaluations[0]
    return FEWER if first.find(name) and one.find(name) and first.values(name).keys() != one.values(name).keys() else ""


def _better(lower: bool) -> str:
    return "lower" if lower else "higher"


def _title(text: str, markdown: bool) -> str:
    return f"**{text}**\n" if markdown else text


def _grid(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    head, *body = rows
    if not markdown:
        return table(head, body)
    # Names are strangers' text; numbers and our own words need no code span.
    own = {"", "better", "n", "suite", "judges", "question", "model", "agree", "Cohen's kappa"}
    lines = [[one if one in own else cell(one) for one in head], ["---"] * len(head)]
    lines += [
        [cell(one) if column in ("suite", "judges", "model") else one for column, one in zip(head, line, strict=True)]
        for line in body
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
