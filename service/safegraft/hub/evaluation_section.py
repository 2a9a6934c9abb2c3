"""The evaluation section of a model card, for people: tables, differences, and what a reader has to be told.

Names are shown without what leads to them: no folder, no address. Knows evaluations as data.
"""

from collections.abc import Callable, Iterator, Sequence

from safegraft.hub.evaluation import AxisScore, Difference, Evaluated, EvaluationDocument, MeasuredScore
from safegraft.hub.markdown import cell, code, counted, details, hub_model, listed, table

LIMITS = "A low attack rate means these attacks, by these judges: it is no proof of safety."
TITLES = {
    "text_safety": "attacks by text",
    "multimodal_safety": "attacks with an image",
    "exaggerated_safety": "over-refusal",
    "helpfulness": "helpfulness",
    "bias": "bias",
}
_NOTHING = "-"
_OTHER_PROMPTS = "\\*"  # behind a score over other prompts than this model's


def evaluation_section(evaluation: EvaluationDocument, plot: str | None) -> str:
    """Markdown without the heading. plot: the name of a picture beside the card."""
    subject = evaluation.evaluated
    judges = listed([code(judge_shown(one.name)) for one in subject.judges]) if subject.judges else "none was needed"
    default = "; the first is the default" if len(subject.judges) > 1 else ""
    parts = [
        f"Measured by safegraft over {counted(subject.prompts, 'prompt')}. Judges: {judges}{default}. {LIMITS}",
    ]
    if plot is not None:
        parts.append(f"![Attacks and over-refusal against helpfulness]({plot})")
    parts += [f"**{title}**\n\n{rows}" for title, rows in _tables(evaluation) if rows]
    parts += [_notes(evaluation), details("By suite, settings and versions", _small_print(evaluation))]
    return "\n\n".join(filter(None, parts))


def _tables(evaluation: EvaluationDocument) -> Iterator[tuple[str, str]]:
    yield "Percent, with 95 % intervals", _scores(evaluation, lambda one: one.name.partition("@")[0] in TITLES, _axis)
    yield "Difference of this model from the others, in points, prompt by prompt", _differences(evaluation)


def _small_print(evaluation: EvaluationDocument) -> str:
    subject = evaluation.evaluated
    suites = _scores(evaluation, lambda one: one.name.partition("@")[0] not in TITLES, lambda one: cell(_named(one)))
    settings = ", ".join(f"{key} {value}" for key, value in subject.settings.items() if "://" not in str(value))
    versions = ", ".join(f"{name} {version}" for name, version in subject.versions.items())
    measured = _measured(evaluation)
    asked = [f"{cell(one.name)} ({counted(one.n, 'prompt')}, {code(one.digest[:12])})" for one in subject.suites]
    which = f"Suites, by the SHA-256 of their prompts: {listed(asked)}." if asked else ""
    how = f"Settings: {code(settings)}. Versions: {code(versions)}."
    return "\n\n".join(filter(None, [suites, measured, which, how]))


def _scores(
    evaluation: EvaluationDocument, wanted: Callable[[AxisScore], bool], title: Callable[[AxisScore], str]
) -> str:
    """A row for each wanted score of any model, and for each further judge of it; a column for each model."""
    columns = [evaluation.evaluated, *_others(evaluation)]
    found = {
        one.name: one for model in columns for one in model.scores if wanted(one) and not _says_it_again(one, model)
    }
    rows: list[list[str]] = []
    for name, score in found.items():
        cells = [_percent(model.find(name), _mark(evaluation.evaluated, model, name)) for model in columns]
        rows.append([title(score), _better(score), _counts([model.find(name) for model in columns]), *cells])
    return table(["", "better", "n", *_heads(evaluation)], rows) if rows else ""


def _says_it_again(score: AxisScore, model: Evaluated) -> bool:
    """Whether it is a score by the default judge under that judge's name."""
    plain, at, judge = score.name.rpartition("@")
    return bool(at) and judge == score.judge and (default := model.find(plain)) is not None and default.judge == judge


def _axis(score: AxisScore) -> str:
    name, at, judge = score.name.partition("@")
    return TITLES[name] + (f", by {cell(judge_shown(judge))}" if at else "")


def _named(score: AxisScore) -> str:
    name, at, judge = score.name.rpartition("@")
    return f"{name}@{judge_shown(judge)}" if at and judge == score.judge else score.name


def _measured(evaluation: EvaluationDocument) -> str:
    """Scores of a benchmark harness, in their own units."""
    columns = [evaluation.evaluated, *_others(evaluation)]
    by_model = [{one.name: one for one in model.measured} for model in columns]
    found = {name: one for model in by_model for name, one in model.items()}
    rows = [
        [
            cell(name),
            _better(one),
            _counts([model.get(name) for model in by_model]),
            *(_plainly(model.get(name)) for model in by_model),
        ]
        for name, one in found.items()
    ]
    return table(["", "better", "n", *_heads(evaluation)], rows) if rows else ""


def _differences(evaluation: EvaluationDocument) -> str:
    others = [place for place in range(len(evaluation.models)) if place != evaluation.subject]
    found = {(other, one.name): one for other in others for one in _between(evaluation, other)}
    rows: list[list[str]] = []
    for axis, title in TITLES.items():
        ones = [found.get((other, axis)) for other in others]
        if known := [one for one in ones if one is not None]:
            better = "lower" if axis != "helpfulness" else "higher"
            rows.append([title, better, _counts(known), *map(_points, ones)])
    heads = [cell(one) for one in _labels(evaluation)[1:]]
    return table(["", "better", "n", *heads], rows) if rows else ""


def _between(evaluation: EvaluationDocument, other: int) -> Iterator[Difference]:
    """How much higher this model scores than another."""
    for one in evaluation.differences:
        if (one.first, one.second) == (other, evaluation.subject):
            yield one
        elif (one.first, one.second) == (evaluation.subject, other):
            yield one.model_copy(update={"value": 0.0 - one.value, "low": 0.0 - one.high, "high": 0.0 - one.low})


def _notes(evaluation: EvaluationDocument) -> str:
    """What a reader has to know before comparing: prompts not asked, answers not judged or not understood."""
    notes: list[str] = []
    columns = [evaluation.evaluated, *_others(evaluation)]
    for model, head in zip(columns, _heads(evaluation), strict=True):
        for reason, count in model.skipped.items():
            notes.append(f"{head}: {count} of {counted(model.prompts, 'prompt')} were not asked: {code(reason)}")
        axes = [one for one in model.scores if one.name in TITLES]
        if errors := sum(one.errors for one in axes):
            notes.append(f"{head}: {counted(errors, 'answer')} without a verdict, which do not count")
        if unparsed := sum(one.unparsed for one in axes):
            notes.append(f"{head}: {counted(unparsed, 'answer')} that name no choice, which count as wrong")
    names = {one.name for one in evaluation.evaluated.scores}
    if any(_mark(evaluation.evaluated, model, name) for model in columns for name in names):
        notes.insert(0, f"{_OTHER_PROMPTS} over other prompts than this model: not to be compared with it")
    return "\n".join(f"- {note}" for note in notes)


def _others(evaluation: EvaluationDocument) -> list[Evaluated]:
    return [one for place, one in enumerate(evaluation.models) if place != evaluation.subject]


def _heads(evaluation: EvaluationDocument) -> list[str]:
    _, *others = _labels(evaluation)
    return ["this model", *map(cell, others)]


def _labels(evaluation: EvaluationDocument) -> list[str]:
    """The models' names, this one's first; what two models are called has a number."""
    names: list[str] = []
    for one in [evaluation.evaluated, *_others(evaluation)]:
        name, number = label(one), 2
        while name in names:
            name, number = f"{label(one)} ({number})", number + 1
        names.append(name)
    return names


def label(model: Evaluated) -> str:
    """Its Hub name, or the last part of its path: where it lies is nobody's business."""
    return "+".join(found[0] if (found := hub_model(part)) else _last(part) for part in model.model.split("+"))


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or "model"


def judge_shown(name: str) -> str:
    """A judge without the address of an endpoint or the place of a folder."""
    kind, colon, rest = name.partition(":")
    if "://" in rest:
        return f"{kind}:{rest.rpartition('#')[2]}" if "#" in rest else kind
    own = rest if rest.count("/") == 1 and not rest.startswith((".", "/", "~")) else _last(rest)
    return f"{kind}{colon}{own}" if colon else name


def _percent(score: AxisScore | None, mark: str = "") -> str:
    return (
        _NOTHING if score is None else f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]{mark}"
    )


def _plainly(score: MeasuredScore | None) -> str:
    return _NOTHING if score is None else f"{score.value:.4g} [{score.low:.4g}, {score.high:.4g}]"


def _points(one: Difference | None) -> str:
    return _NOTHING if one is None else f"{100 * one.value:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"


def _counts(scores: Sequence[MeasuredScore | Difference | None]) -> str:
    """How many answers count: '60', or '60-120' when the models differ."""
    counts = sorted({score.n for score in scores if score is not None})
    return "-".join(map(str, counts if len(counts) < 2 else (counts[0], counts[-1])))


def _better(score: MeasuredScore) -> str:
    return "lower" if score.lower_is_better else "higher"


def _mark(subject: Evaluated, model: Evaluated, name: str) -> str:
    one, other = subject.find(name), model.find(name)
    if one is None or other is None:
        return ""
    same = (one.n, one.skipped, one.errors) == (other.n, other.skipped, other.errors)
    return "" if same and subject.suites == model.suites else _OTHER_PROMPTS
