"""The figures: each a PNG with a title and a sentence that says what it shows and how to read it.

Reads an Analysis; knows no HTML and no files.
"""

# matplotlib types its own functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from safegraft_trainers.analyze.barrier import LinearPath
from safegraft_trainers.analyze.divergence import Divergence, Pull
from safegraft_trainers.analyze.kinds import in_order
from safegraft_trainers.analyze.layout import LANGUAGE_MODEL
from safegraft_trainers.analyze.run import Analysis
from safegraft_trainers.analyze.weights import Comparison, Group

WIDTH = 8.0  # inches; a page's, and readable when a phone scales it down
DPI = 160
MOST_CELLS = 140  # of a heat map that has its numbers written in
LONGEST = 30  # characters of a name in a legend
STYLES = ("-", "--", "-.", ":")  # with the colours, for print in black and white
MARKERS = "osD^vPX*"
SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """name: of the file, without ending. section: where it belongs in the report."""

    name: str
    section: str
    title: str
    sentence: str
    png: bytes


def plots(analysis: Analysis) -> list[Plot]:
    """All figures there is something to show in, in the report's order."""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the report's text has it right.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        return [
            *_weights(analysis),
            *_task_vectors(analysis),
            *_safety_layers(analysis),
            *_separation(analysis),
            *_divergence(analysis),
            *_paths(analysis),
        ]


# -- weights --------------------------------------------------------------------------------------


def _weights(analysis: Analysis) -> Iterator[Plot]:
    comparisons = analysis.comparisons
    for number, one in enumerate(comparisons, 1):
        for stack, part in one.stacks().items():
            groups = [group for group in one.by_layer_and_kind() if group.stack == stack]
            if not any(group.change.relative for group in groups):
                continue
            what = part if list(one.stacks().values()).count(part) == 1 else f"{part} ({stack})"
            yield Plot(
                f"change-map-{number}-{_slug(what)}",
                "weights",
                f"{one.model}: what moved in the {what}",
                f"Each cell is one kind of weight in one layer: the darker, the further it is from {one.reference}, "
                "relative to its own size. A dark column is a layer that changed as a whole, a dark row a kind of "
                "weight that changed everywhere.",
                _png(_change_map(groups)),
            )
    layered = [(one, _layers(one)) for one in comparisons if _layers(one)]
    if layered:
        yield Plot(
            "change-by-layer",
            "weights",
            "How far each layer of the language model moved",
            "Left: the size of the change as a share of the layer's own size; 0 % means untouched. Right: the cosine "
            "of the layer before and after; 1 means that only its length changed. A peak marks where training worked.",
            _png(_change_by_layer(layered)),
        )
    yield Plot(
        "change-by-kind",
        "weights",
        "How far each kind of weight of the language model moved",
        "A bar is the relative change of all weights of one kind, over all layers. The longer the bar, the more of the "
        "change lies there.",
        _png(_change_by_kind(comparisons)),
    )
    if any(group.rank_share for _, groups in layered for group in groups):
        yield Plot(
            "rank-by-layer",
            "weights",
            "How many directions the change takes",
            "Left: the effective rank of the change as a share of full rank, a mean over a layer's matrices; near 0 % "
            "a few directions hold all of the change, as after a LoRA. Right: the spectral norm, the size of the "
            "change along its strongest direction, the largest in each layer.",
            _png(_rank_by_layer(layered)),
        )


def _layers(one: Comparison) -> list[Group]:
    """Of the language model."""
    return [group for group in one.by_layer() if group.part == LANGUAGE_MODEL]


def _change_map(groups: Sequence[Group]) -> Figure:
    values = {(group.kind or "", group.layer or 0): group.change.relative for group in groups}
    return _heat_map(values, _rows(values), sorted({layer for _, layer in values}), "relative change", percent=True)


def _change_by_layer(layered: Sequence[tuple[Comparison, list[Group]]]) -> Figure:
    figure, (left, right) = _panels(2)
    for number, (one, groups) in enumerate(layered):
        layers = [group.layer or 0 for group in groups]
        _line(left, layers, [group.change.relative for group in groups], one.model, number)
        _line(right, layers, [group.change.cosine for group in groups], one.model, number)
    _percent(left, "relative change")
    right.set_ylabel("cosine")
    right.ticklabel_format(axis="y", useOffset=False)
    _layer_axis(left, right)
    _legend(figure, left)
    return figure


def _change_by_kind(comparisons: Sequence[Comparison]) -> Figure:
    found = [
        {group.kind or "": group.change.relative or 0.0 for group in one.by_kind() if group.part == LANGUAGE_MODEL}
        for one in comparisons
    ]
    kinds = in_order({kind for one in found for kind in one})
    figure, axes = _single(max(3.0, 0.9 + len(kinds) * (0.22 + 0.14 * len(comparisons))))
    height = 0.8 / len(comparisons)
    for number, (one, values) in enumerate(zip(comparisons, found, strict=True)):
        places = [row + (number - (len(comparisons) - 1) / 2) * height for row in range(len(kinds))]
        axes.barh(
            places,
            [values.get(kind, 0.0) for kind in kinds],
            height,
            label=_short(one.model),
            color=_colour(number),
            edgecolor="white",
            hatch=("", "//", "..", "xx")[number % 4],
        )
    axes.set_yticks(range(len(kinds)), [_short(kind) for kind in kinds])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("relative change")
    _legend(figure, axes)
    return figure


def _rank_by_layer(layered: Sequence[tuple[Comparison, list[Group]]]) -> Figure:
    figure, (left, right) = _panels(2)
    for number, (one, groups) in enumerate(layered):
        layers = [group.layer or 0 for group in groups]
        _line(left, layers, [group.rank_share for group in groups], one.model, number)
        _line(right, layers, [group.spectral_norm for group in groups], one.model, number)
    _percent(left, "effective rank / full rank")
    right.set_ylabel("spectral norm of the change")
    _from_zero(right)
    _layer_axis(left, right)
    _legend(figure, left)
    return figure


# -- task vectors ---------------------------------------------------------------------------------


def _task_vectors(analysis: Analysis) -> Iterator[Plot]:
    vectors = analysis.task_vectors
    if vectors is None or not vectors.pairs:
        return
    yield Plot(
        "task-vectors",
        "task vectors",
        f"Whether models learnt the same from {vectors.base}",
        f"What each model changed of {vectors.base}, compared by pairs. Left: the cosine of the two changes, 1 the "
        "same, 0 unrelated, below 0 opposed. Right: the share of weights that both moved to the same side; unrelated "
        "models agree in about half. Models that agree merge well; where they do not, they undo each other.",
        _png(_agreement(analysis)),
    )


def _agreement(analysis: Analysis) -> Figure:
    vectors = analysis.task_vectors
    assert vectors is not None  # the caller looked
    models = list(vectors.norms)
    figure, panels = _panels(2, height=1.6 + 0.55 * len(models))
    for axes, label, low in zip(panels, ("cosine", "sign agreement"), (-1.0, 0.0), strict=True):
        table = [[1.0 if one == other else float("nan") for other in models] for one in models]
        for pair in vectors.pairs:
            value = pair.overall.cosine if label == "cosine" else pair.overall.sign_agreement
            one, other = models.index(pair.one), models.index(pair.other)
            table[one][other] = table[other][one] = float("nan") if value is None else value
        axes.imshow(table, cmap="RdBu", vmin=low, vmax=1.0)
        for row, values in enumerate(table):
            for column, value in enumerate(values):
                dark = abs((value - low) / (1 - low) - 0.5) > 0.3
                text = "-" if value != value else f"{value:.3f}"
                axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
        axes.set_title(label)
        axes.grid(visible=False)
        names = [_short(model) for model in models]
        axes.set_xticks(range(len(models)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(models)), names if axes is panels[0] else [""] * len(models))
    return figure


# -- models at work -------------------------------------------------------------------------------


def _safety_layers(analysis: Analysis) -> Iterator[Plot]:
    curves = analysis.safety_layers
    if not curves:
        return
    yield Plot(
        "safety-layers",
        "safety layers",
        "Where harmful prompts begin to look different",
        "One panel a model. Solid: how alike two normal prompts are inside the model (the cosine of their last "
        "tokens' states). Dashed: a normal and a harmful prompt. Where the dashed line falls below the solid one, the "
        "layers tell harmful requests apart (the safety layers of arXiv 2408.17003).",
        _png(_cosine_curves(analysis)),
    )

    def draw() -> Figure:
        figure, axes = _single()
        for number, one in enumerate(curves):
            _line(axes, range(len(one.gap)), one.gap, one.model, number)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel("gap between the two curves")
        _layer_axis(axes)
        _legend(figure, axes)
        return figure

    yield Plot(
        "safety-gap",
        "safety layers",
        "The gap between the two curves",
        "Solid minus dashed of the figure above. The higher, the further apart a model keeps harmful and normal "
        "prompts at that layer; at 0 or below it does not by this measure. A model that lies lower than the reference "
        "has lost some of that.",
        _png(draw()),
    )


def _cosine_curves(analysis: Analysis) -> Figure:
    curves = analysis.safety_layers
    figure, panels = _panels(len(curves), share=True)
    for number, (axes, one) in enumerate(zip(panels, curves, strict=True)):
        layers = range(len(one.normal))
        axes.plot(layers, one.normal, "-", marker="o", markersize=4, color=_colour(0), label="normal and normal")
        axes.plot(layers, one.harmful, "--", marker="s", markersize=4, color=_colour(3), label="normal and harmful")
        axes.fill_between(layers, one.normal, one.harmful, color=_colour(0), alpha=0.1)
        axes.set_title(_short(one.model))
        if number == 0:
            axes.set_ylabel("cosine of last-token states")
    _layer_axis(*panels)
    _legend(figure, panels[0])
    return figure


def _separation(analysis: Analysis) -> Iterator[Plot]:
    if not analysis.separation:
        return
    figure, (left, right) = _panels(2)
    for number, one in enumerate(analysis.separation):
        _line(left, range(len(one.auc)), one.auc, one.model, number)
        _line(right, range(len(one.distance)), one.distance, one.model, number)
    left.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    left.set_ylim(min(0.45, *(value for one in analysis.separation for value in one.auc)), 1.02)
    left.set_ylabel("AUC of the probe")
    right.set_ylabel("distance between the classes")
    _from_zero(right)
    _layer_axis(left, right)
    _legend(figure, left)
    yield Plot(
        "separation",
        "separation",
        "How well harmful and normal prompts can be told apart",
        "Left: a linear probe's AUC on prompts that it has not seen; 1 is perfect, 0.5 (dotted) is chance. Right: the "
        "distance between the two classes' means, in units of the spread within a class. A high AUC with more attacks "
        "that succeed means that the model still sees the harm and no longer acts on it.",
        _png(figure),
    )


def _divergence(analysis: Analysis) -> Iterator[Plot]:
    found = analysis.divergence
    if not found:
        return
    yield Plot(
        "divergence-by-layer",
        "divergence",
        "Whether adaptation and safety pull the same way, by layer",
        "The cosine of the two losses' gradients in each layer of the language model: above 0, a step for one also "
        "helps the other; at 0 they have nothing to do with each other; below 0, learning one unlearns the other. The "
        "table says how far each gradient can be trusted.",
        _png(_pull_by_layer(found)),
    )
    for number, one in enumerate(found, 1):
        values = {
            (pull.kind or "", pull.layer or 0): pull.cosine
            for pull in one.layers_and_kinds
            if pull.part == LANGUAGE_MODEL
        }
        if values:
            layers = sorted({layer for _, layer in values})
            yield Plot(
                f"divergence-map-{number}",
                "divergence",
                f"{one.model}: where adaptation and safety agree and where they clash",
                "Each cell is the same cosine for one kind of weight in one layer. Blue: both losses pull the same "
                "way. Red: they pull against each other.",
                _png(_heat_map(values, _rows(values), layers, "cosine of the gradients", percent=False)),
            )


def _pull_by_layer(found: Sequence[Divergence]) -> Figure:
    figure, axes = _single()
    for number, one in enumerate(found):
        layers: list[Pull] = [pull for pull in one.layers if pull.part == LANGUAGE_MODEL]
        _line(axes, [pull.layer or 0 for pull in layers], [pull.cosine for pull in layers], one.model, number)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("cosine of the gradients")
    _layer_axis(axes)
    _legend(figure, axes)
    return figure


def _paths(analysis: Analysis) -> Iterator[Plot]:
    names = list(dict.fromkeys(name for path in analysis.paths for name in path.losses))
    if names:
        yield Plot(
            "barrier",
            "paths",
            "The loss on the way from the reference to each model",
            "Left end: the reference's weights; right end: the model's; between them, their weighted means. The thin "
            "line joins the ends. A curve below it means that a merge is better than its parts' average; a hump above "
            "it is a barrier, and merges there are worse. Lower is better.",
            _png(_losses(analysis.paths, names)),
        )
    metrics = list(dict.fromkeys(metric for path in analysis.paths for metric in path.scores))
    if metrics:
        yield Plot(
            "scores",
            "paths",
            "Scores on the way from the reference to each model",
            "The same way, scored on the suites. Of attack success, refusals and bias lower is better, of helpfulness "
            "higher. The bands are 95 % intervals. Look for a point that is low in the former before it falls in the "
            "latter.",
            _png(_metrics(analysis.paths, metrics)),
        )


def _losses(paths: Sequence[LinearPath], names: Sequence[str]) -> Figure:
    figure, panels = _panels(len(names))
    for axes, name in zip(panels, names, strict=True):
        for number, path in enumerate(paths):
            values = path.losses[name]
            _line(axes, path.points, values, path.model, number)
            axes.plot((0, 1), (values[0], values[-1]), color=_colour(number), linewidth=0.7)
        axes.set_title(f"{name} loss")
        axes.set_xlabel("share of the model")
    panels[0].set_ylabel("mean loss, nats a token")
    _legend(figure, panels[0])
    return figure


def _metrics(paths: Sequence[LinearPath], metrics: Sequence[str]) -> Figure:
    figure, panels = _panels(len(metrics))
    for axes, metric in zip(panels, metrics, strict=True):
        for number, path in enumerate(paths):
            if metric in path.scores:
                scores = path.scores[metric]
                _line(axes, path.points, [one.value for one in scores], path.model, number)
                low, high = [one.low for one in scores], [one.high for one in scores]
                axes.fill_between(path.points, low, high, color=_colour(number), alpha=0.12, linewidth=0)
        axes.set_title(metric.replace("_", " "))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("share of the model")
    _legend(figure, panels[0])
    return figure


# -- drawing --------------------------------------------------------------------------------------


def _heat_map(
    values: dict[tuple[str, int], float | None],
    rows: Sequence[str],
    columns: Sequence[int],
    label: str,
    *,
    percent: bool,
) -> Figure:
    """Kinds by layers. Relative changes from white to dark; cosines from red through white to blue."""
    table = [[_number(values.get((row, column))) for column in columns] for row in rows]
    largest = max((abs(value) for line in table for value in line if value == value), default=1.0) or 1.0
    figure, axes = _single(max(2.4, 1.1 + 0.34 * len(rows)))
    low = 0.0 if percent else -largest
    image = axes.imshow(table, aspect="auto", cmap="Blues" if percent else "RdBu", vmin=low, vmax=largest)
    if len(rows) * len(columns) <= MOST_CELLS:
        for row, line in enumerate(table):
            for column, value in enumerate(line):
                if value == value:
                    shade = value / largest if percent else abs(value) / largest
                    text = f"{100 * value:.1f}" if percent else f"{value:.2f}"
                    colour = "white" if shade > 0.6 else "black"
                    axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    axes.set_yticks(range(len(rows)), [_short(row) for row in rows])
    step = -(-len(columns) // 20)
    axes.set_xticks(range(0, len(columns), step), [str(column) for column in columns[::step]])
    axes.set_xlabel("layer")
    axes.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, label=f"{label}, %" if percent else label)
    if percent:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    return figure


def _rows(values: dict[tuple[str, int], float | None]) -> list[str]:
    return in_order({kind for kind, _ in values})


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _single(height: float = 3.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _panels(count: int, *, height: float = 3.4, share: bool = False) -> tuple[Figure, list[Any]]:
    """Side by side, in rows of two or three."""
    across = 2 if count == 4 else min(count, 3)
    down = -(-count // across)
    figure = Figure(figsize=(WIDTH, height * down), layout="constrained")
    grid: Any = figure.subplots(down, across, squeeze=False, sharey=share)
    panels: list[Any] = list(grid.flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _line(axes: Any, places: Sequence[float], values: Sequence[float | None], label: str, number: int) -> None:
    axes.plot(
        list(places),
        [_number(value) for value in values],
        STYLES[number % len(STYLES)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=4,
        color=_colour(number),
        label=_short(label),
    )


def _colour(number: int) -> str:
    """Told apart with most kinds of colour blindness (Okabe and Ito)."""
    return ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")[number % 7]


def _percent(axes: Any, label: str) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel(label)
    _from_zero(axes)


def _from_zero(axes: Any) -> None:
    """With room for the highest marker."""
    axes.set_ylim(0, max(axes.dataLim.y1 * 1.08, 1e-12))


def _layer_axis(*panels: Any) -> None:
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")


def _legend(figure: Figure, axes: Any) -> None:
    """Above the panels, where no curve is."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)))


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2 - 1]}…{name[-LONGEST // 2 :]}"


def _slug(text: str) -> str:
    return "-".join("".join(char if char.isascii() and char.isalnum() else " " for char in text).split())


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()
