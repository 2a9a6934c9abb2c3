"""An analysis as a folder: report.html, which needs nothing else, analysis.json with every number, and the figures.

Everything that comes from elsewhere (names of models, tensors, files) is escaped by the template.
"""

import base64
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import jinja2

from safegraft.errors import OutputError, output_errors
from safegraft_trainers.analyze.plots import Plot, plots
from safegraft_trainers.analyze.run import Analysis
from safegraft_trainers.analyze.summary import findings, number, percent
from safegraft_trainers.analyze.weights import Comparison

MOST_ROWS = 20  # of a table; the JSON has all
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """words: columns that hold text beside the first."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    text: str
    plots: Sequence[dict[str, str]] = ()
    tables: Sequence[Table] = field(default_factory=list[Table])


def check_out(out: Path) -> None:
    """Raises OutputError when a report cannot be put there: asked before the long work begins."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out}: is there already; name another folder, or remove it")


def write(analysis: Analysis, out: Path) -> Path:
    """Write the folder, which appears when it is complete, and return the path of its report.html.

    Raises OutputError.
    """
    check_out(out)
    drawn = plots(analysis)
    page = render(analysis, drawn)
    document = json.dumps(analysis.to_dict(), indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    with output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.{uuid4().hex[:8]}")
        partial.mkdir()
        try:
            (partial / "plots").mkdir()
            for plot in drawn:
                (partial / "plots" / f"{plot.name}.png").write_bytes(plot.png)
            (partial / "analysis.json").write_text(document, encoding="utf-8")
            (partial / "report.html").write_text(page, encoding="utf-8")
            os.replace(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return out / "report.html"


def render(analysis: Analysis, drawn: Sequence[Plot]) -> str:
    """The page, with its figures inside and no scripts."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((files(__package__ or "") / "report.html.jinja").read_text(encoding="utf-8"))
    models = ", ".join(analysis.models)
    lead = f"{models} against {analysis.reference}" + (f", both from {analysis.base}" if analysis.base else "") + "."
    return template.render(
        title=f"Where {models} {'differs' if len(analysis.models) == 1 else 'differ'} from {analysis.reference}",
        lead=f"Made by safegraft analyze. Every number is in analysis.json. Compared: {lead}",
        findings=findings(analysis),
        sections=list(_sections(analysis, drawn)),
    )


def _sections(analysis: Analysis, drawn: Sequence[Plot]) -> Iterator[Section]:
    def figures(section: str) -> list[dict[str, str]]:
        return [
            {
                "title": plot.title,
                "sentence": plot.sentence,
                "encoded": base64.b64encode(plot.png).decode("ascii"),
            }
            for plot in drawn
            if plot.section == section
        ]

    yield Section(
        "Weights",
        "The relative change of a weight is the size of the difference over the size of the reference's weight "
        "(Frobenius norms). An LLM inside a vision-language model is compared over the language model that both have.",
        figures("weights"),
        [table for one in analysis.comparisons for table in _weight_tables(one)],
    )
    if analysis.task_vectors is not None:
        yield Section(
            "Task vectors",
            f"What each model changed of {analysis.base}.",
            figures("task vectors"),
            _task_vector_tables(analysis),
        )
    if analysis.safety_layers:
        yield Section(
            "Safety layers",
            "Normal and harmful prompts, each model's states at the prompt's last token (arXiv 2408.17003).",
            figures("safety layers"),
            [_curve_table(analysis)],
        )
        yield Section(
            "Separation",
            "A logistic probe on the same states, scored on prompts that it has not seen.",
            figures("separation"),
            [_probe_table(analysis)],
        )
    if analysis.divergence:
        yield Section(
            "Divergence",
            "Gradients of the loss on adaptation data and of the loss on safety data, at each model's weights. "
            "Consistency is the cosine of one loss's gradients over two halves of its samples: where it is small, so "
            "few samples say little.",
            figures("divergence"),
            [_divergence_table(analysis)],
        )
    if analysis.paths:
        yield Section(
            "The way between",
            "Linear merges (1 - t) reference + t model. The barrier is the greatest height of the loss above the "
            "straight line between the ends, the rise its height above the ends' mean.",
            figures("paths"),
            list(_path_tables(analysis)),
        )
    yield Section(
        "What was compared",
        "The same models, data and settings give the same numbers.",
        (),
        list(_provenance(analysis)),
    )


def _weight_tables(one: Comparison) -> Iterator[Table]:
    header = ("layer", "relative change", "cosine", "spectral norm", "effective rank, share")
    ranking = [group for group in one.ranking() if group.change.relative != 0]
    rows = [
        (
            f"{group.part} {group.layer}",
            percent(group.change.relative),
            number(group.change.cosine, 5),
            number(group.spectral_norm, 4),
            percent(group.rank_share),
        )
        for group in ranking[:MOST_ROWS]
    ]
    if rows:
        yield Table(f"{one.model}: layers, those that moved most first", header, rows, note=_rest(len(ranking)))
    tensors = [tensor for tensor in one.ranked_tensors() if tensor.change.relative != 0]
    rows = [
        (
            tensor.name,
            percent(tensor.change.relative),
            number(tensor.change.cosine, 5),
            number(tensor.spectrum.spectral_norm, 4) if tensor.spectrum else NOTHING,
            f"{tensor.spectrum.effective_rank:.1f} of {tensor.spectrum.rank}" if tensor.spectrum else NOTHING,
        )
        for tensor in tensors[:MOST_ROWS]
    ]
    if rows:
        header = ("tensor", "relative change", "cosine", "spectral norm", "effective rank")
        yield Table(f"{one.model}: tensors, those that moved most first", header, rows, note=_rest(len(tensors)))


def _rest(count: int) -> str:
    return f"{count - MOST_ROWS} more are in analysis.json." if count > MOST_ROWS else ""


def _task_vector_tables(analysis: Analysis) -> list[Table]:
    vectors = analysis.task_vectors
    assert vectors is not None  # the caller looked
    norms = [
        (model, number(norm, 4), percent(norm / base if base else None))
        for model, (norm, base) in vectors.norms.items()
    ]
    pairs = [
        (f"{pair.one}, {pair.other}", number(pair.overall.cosine, 4), percent(pair.overall.sign_agreement))
        for pair in vectors.pairs
    ]
    return [
        Table("How much each changed", ("model", "norm", "of the base's norm"), norms),
        Table("How well they agree", ("models", "cosine", "equal signs"), pairs),
    ]


def _curve_table(analysis: Analysis) -> Table:
    header = ("layer", *(one.model for one in analysis.safety_layers))
    depth = max(len(one.gap) for one in analysis.safety_layers)
    rows = [
        (str(layer), *(number(one.gap[layer]) if layer < len(one.gap) else NOTHING for one in analysis.safety_layers))
        for layer in range(depth)
    ]
    return Table("The gap: normal-normal minus normal-harmful cosine", header, rows)


def _probe_table(analysis: Analysis) -> Table:
    header = ("layer", *(f"{one.model}: {what}" for one in analysis.separation for what in ("AUC", "accuracy")))
    depth = max(len(one.auc) for one in analysis.separation)
    rows: list[list[str]] = []
    for layer in range(depth):
        row = [str(layer)]
        for one in analysis.separation:
            there = layer < len(one.auc)
            row += [number(one.auc[layer]), percent(one.accuracy[layer])] if there else [NOTHING, NOTHING]
        rows.append(row)
    first = analysis.separation[0]
    note = f"{first.folds} folds over {first.normal} normal and {first.harmful} harmful prompts; accuracy is balanced."
    return Table("The probe", header, rows, note=note)


def _divergence_table(analysis: Analysis) -> Table:
    header = ("model", "cosine", "adaptation: consistency", "safety: consistency", "adaptation: norm", "safety: norm")
    rows = [
        (
            one.model,
            number(one.overall.cosine),
            number(one.overall.adaptation_consistency),
            number(one.overall.safety_consistency),
            number(one.overall.adaptation_norm),
            number(one.overall.safety_norm),
        )
        for one in analysis.divergence
    ]
    unreached = [f"{one.model}: {len(one.unreached)}" for one in analysis.divergence if one.unreached]
    note = f"Parameters that one of the losses does not reach, and are in no number: {', '.join(unreached)}."
    return Table("Over all weights", header, rows, note=note if unreached else "")


def _path_tables(analysis: Analysis) -> Iterator[Table]:
    rows = [
        (path.model, data, number(path.barrier(data), 4), number(path.rise(data), 4), f"{path.lowest(data):g}")
        for path in analysis.paths
        for data in path.losses
    ]
    if rows:
        yield Table("Barriers, in nats", ("to", "loss", "barrier", "rise", "lowest at t"), rows, (1,))
    for path in analysis.paths:
        if path.scores:
            header = ("t", *(metric.replace("_", " ") for metric in path.scores))
            lines = [
                (f"{t:g}", *(percent(scores[index].value) for scores in path.scores.values()))
                for index, t in enumerate(path.points)
            ]
            yield Table(f"Scores towards {path.model}", header, lines)


def _provenance(analysis: Analysis) -> Iterator[Table]:
    models = [(name, one["scheme"], one["digest"][:16]) for name, one in analysis.identities.items()]
    yield Table("Models", ("model", "identity", "digest"), models, (1, 2))
    if analysis.data:
        rows = [(role, one["file"], str(one["samples"]), one["digest"][:16]) for role, one in analysis.data.items()]
        yield Table("Data", ("role", "file", "samples", "digest"), rows, (1, 3))
    settings = [(name.replace("_", " "), _shown(value)) for name, value in analysis.settings.items() if value != []]
    yield Table("Settings", ("setting", "value"), settings, (1,))
    left = [
        (model, str(len(tensors)), ", ".join(list(tensors)[:3]) + (", ..." if len(tensors) > 3 else ""))
        for one in analysis.comparisons
        for model, tensors in one.left_out.items()
    ]
    if left:
        note = "A vision tower has no counterpart in an LLM. All names, with the reason, are in analysis.json."
        yield Table("Tensors compared with nothing", ("of", "tensors", "such as"), left, (2,), note)
    notes = list(dict.fromkeys([*analysis.notes, *(note for one in analysis.comparisons for note in one.notes)]))
    if notes:
        yield Table("Notes", ("note",), [(note,) for note in notes])


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
