"""Pictures of evaluations, for readers without a manual: every panel says what is good, every point how sure it is.

Knows evaluations and matplotlib. Colours are Okabe and Ito's, told apart by all eyes; markers differ as well.
"""

# matplotlib types its artists in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import os
import textwrap
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft.errors import UsageError, output_errors
from safegraft_trainers.evaluate.example import LOWER_IS_BETTER, Axis
from safegraft_trainers.evaluate.results import Evaluation, Score
from safegraft_trainers.evaluate.tables import labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#222222", "#8a8a8a"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*<>"

TITLES = {
    Axis.TEXT_SAFETY: ("Attacks by text", "harmful requests answered"),
    Axis.MULTIMODAL_SAFETY: ("Attacks with an image", "harmful requests answered"),
    Axis.EXAGGERATED_SAFETY: ("Over-refusal", "harmless look-alikes refused"),
    Axis.HELPFULNESS: ("Helpfulness", "tasks done right"),
    Axis.BIAS: ("Bias", "stereotyped choices"),
}
AGAINST_HELPFULNESS = (Axis.TEXT_SAFETY, Axis.MULTIMODAL_SAFETY, Axis.EXAGGERATED_SAFETY)
GOOD = "#009E73"
PARTLY = "*"  # behind a score over a part of the prompts: a text model is not asked those with an image


def four_axes(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write a PNG: a panel for each axis that was measured, a row for each model.

    Raises UsageError when no axis was measured, OutputError.
    """
    axes = [axis for axis in Axis if any(one.find(axis) for one in evaluations)]
    if not axes:
        raise UsageError("there is nothing to draw: no axis has a score")
    figure = _figure(2.6 + 2.9 * len(axes), 2.0 + 0.48 * len(evaluations))
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        _draw_axis(panel, axis, [one.find(axis) for one in evaluations])
    names = [textwrap.fill(name, 28, break_on_hyphens=True) for name in labels(evaluations)]
    panels[0].set_yticks(range(len(evaluations)), names)
    panels[0].set_ylim(len(evaluations) - 0.4, -0.6)
    partly = any((score := one.find(axis)) and score.skipped for one in evaluations for axis in axes)
    note = f" {PARTLY} asked only the prompts without an image." if partly else ""
    figure.supxlabel(f"Lines are 95 % intervals. {_judged(evaluations)}{note}", fontsize=10, color=FAINT)
    _save(figure, path)


def trade_off(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write a PNG: attacks and over-refusal over helpfulness, a mark for each model.

    Raises UsageError when no model has both helpfulness and another axis, OutputError.
    """
    shown = [one for one in evaluations if one.find(Axis.HELPFULNESS)]
    axes = [axis for axis in AGAINST_HELPFULNESS if any(one.find(axis) for one in shown)]
    if not axes:
        raise UsageError("there is nothing to draw: no model has both helpfulness and safety scores")
    rows = -(-len(shown) // 3)  # of the legend
    figure = _figure(1.0 + 4.4 * len(axes), 5.2 + 0.28 * rows)
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        _draw_trade_off(panel, axis, shown)
    handles, names = panels[0].get_legend_handles_labels()
    partly = any(_partly(one, axis) for one in shown for axis in axes)
    note = "\nHollow marks were asked only the prompts without an image." if partly else ""
    title = f"Lines are 95 % intervals. The green corner is best. {_judged(shown)}{note}"
    legend = figure.legend(
        handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=11, title=title, title_fontsize=10
    )
    legend.get_title().set(color=FAINT, multialignment="center")
    _save(figure, path)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _draw_axis(panel: "Axes", axis: Axis, scores: Sequence[Score | None]) -> None:
    title, what = TITLES[axis]
    better = "lower is better  \u2190" if LOWER_IS_BETTER[axis] else "higher is better  \u2192"
    panel.set_title(title, fontsize=13, color=INK, fontweight="bold", pad=24)
    above: Any = {"xycoords": "axes fraction", "textcoords": "offset points"}
    panel.annotate(better, (0.5, 1), (0, 8), ha="center", fontsize=10.5, color=INK, **above)
    panel.set_xlabel(f"{what}, %", fontsize=10.5, color=INK)
    colour = COLOURS[1] if LOWER_IS_BETTER[axis] else COLOURS[0]
    for row, score in enumerate(scores):
        if score is None:
            panel.text(50, row, "no score", ha="center", va="center", fontsize=10, color=FAINT, style="italic")
            continue
        value, low, high = 100 * score.value, 100 * score.low, 100 * score.high
        panel.barh(row, value, height=0.5, color=colour, alpha=0.35)
        panel.errorbar(
            value,
            row,
            xerr=[[value - low], [high - value]],
            fmt="o",
            color=colour,
            markersize=6,
            capsize=3,
            linewidth=1.8,
        )
        side, place = ("left", high + 2.5) if high < 80 else ("right", low - 2.5)
        text = f"{value:.1f}{PARTLY if score.skipped else ''}"
        panel.text(place, row, text, ha=side, va="center", fontsize=11, color=INK)
    _frame(panel)
    panel.set(xlim=(-2, 102), xticks=range(0, 101, 25))
    panel.grid(axis="x", alpha=0.3)
    panel.tick_params(axis="y", length=0)


def _draw_trade_off(panel: "Axes", axis: Axis, evaluations: Sequence[Evaluation]) -> None:
    from matplotlib.patches import Circle

    title, what = TITLES[axis]
    panel.set_title(title, fontsize=14, color=INK, fontweight="bold")
    panel.set_xlabel("helpfulness: tasks done right, %\nhigher is better  \u2192", fontsize=11, color=INK)
    panel.set_ylabel(f"lower is better  \u2190\n{what}, %", fontsize=11, color=INK)
    looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    for one, name, (colour, marker) in zip(evaluations, labels(evaluations), looks, strict=False):
        helpful, rate = one.find(Axis.HELPFULNESS), one.find(axis)
        if rate is None or helpful is None:
            panel.plot([], [], color=colour, marker=marker, linestyle="", markersize=9, label=name)
            continue
        panel.errorbar(
            100 * helpful.value,
            100 * rate.value,
            xerr=_arms(helpful),
            yerr=_arms(rate),
            color=colour,
            marker=marker,
            markersize=9,
            elinewidth=1,
            ecolor=(colour, 0.45),
            markerfacecolor="white" if _partly(one, axis) else colour,
            markeredgewidth=1.8,
            linestyle="",
            label=name,
        )
    for radius in (12, 24, 36):
        panel.add_patch(Circle((104, -4), radius, color=GOOD, alpha=0.06, linewidth=0, zorder=0))
    panel.set(xlim=(-4, 104), ylim=(-4, 104), xticks=range(0, 101, 25), yticks=range(0, 101, 25))
    _frame(panel)
    panel.grid(alpha=0.3)


def _arms(score: Score) -> list[list[float]]:
    return [[100 * (score.value - score.low)], [100 * (score.high - score.value)]]


def _frame(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=11, colors=INK)


def _judged(evaluations: Sequence[Evaluation]) -> str:
    judges = dict.fromkeys(one.judges[0].name for one in evaluations if one.judges)
    n = max((score.n for one in evaluations for axis in Axis if (score := one.find(axis))), default=0)
    return f"Judged by {', '.join(judges)}; up to {n} prompts a point." if judges else f"Up to {n} prompts a point."


def _partly(evaluation: Evaluation, axis: Axis) -> bool:
    """Whether a mark is over a part of the prompts, on either of its axes."""
    return any((score := evaluation.find(one)) is not None and score.skipped for one in (axis, Axis.HELPFULNESS))


def _save(figure: "Figure", path: Path) -> None:
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        figure.savefig(draft, format="png")
        os.replace(draft, path)
