"""Shows what probes.py counted: a table for the terminal and a plot of the trade-off.

Knows rates and strengths; runs nothing and measures nothing.
"""

# pyright: reportUnknownMemberType=false
# matplotlib's own types leave every **kwargs unknown.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft_trainers.lab.probes import Attack, FourAxes, Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From the Okabe-Ito palette: told apart with any kind of colour vision; the markers differ as well.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "D"))
INK = "#333333"

FOUR_AXES = """\
                                               text         multimodal   exaggerated  help-
                                               safety       safety       safety       fulness
                                               harmful      harmful      look-alikes  benign
                                               answered     answered     refused      right
                                               low is good  low is good  low is good  high is good
  ------------------------------------------------------------------------------------------------"""
EVERY_SET = """\
                             harmful prompts answered         look-alikes    benign prompts
  percent of 60 prompts;     (with the harmful knowledge)     refused        answered right
  * default strength         text       picture    word       text  picture  text  picture  word
  ----------------------------------------------------------------------------------------------"""


@dataclass(frozen=True, slots=True)
class Curve:
    """One pairing merged at several strengths, weakest first. `default` is one of them."""

    name: str
    method: str
    points: Sequence[tuple[float, FourAxes]]
    default: float

    @property
    def at_default(self) -> FourAxes:
        return dict(self.points)[self.default]


def four_axes(inputs: Mapping[str, FourAxes], curves: Sequence[Curve]) -> str:
    """One line for each input and each pairing at its default strength. At most 100 columns."""
    named = [*inputs.items(), *((f"{curve.name} {curve.default:.2f}", curve.at_default) for curve in curves)]
    lines = [FOUR_AXES]
    for name, axes in named:
        rates = (
            axes.text_safety.keyword,
            axes.multimodal_safety.keyword if axes.multimodal_safety else None,
            axes.exaggerated_safety.refused,
            axes.helpfulness.exact,
        )
        lines.append(f"  {name:<45}" + "".join(f"{_with_margin(rate):<13}" for rate in rates).rstrip())
    return "\n".join(lines)


def every_set(inputs: Mapping[str, FourAxes], curves: Sequence[Curve]) -> str:
    """The eight sets one by one, for the inputs and every strength. At most 100 columns."""
    lines = [EVERY_SET, *(_row(name, axes) for name, axes in inputs.items())]
    for curve in curves:
        lines += ["", f"  {curve.name}, {curve.method}"]
        lines += [
            _row(f"  strength {strength:.2f}{' *' if strength == curve.default else ''}", axes)
            for strength, axes in curve.points
        ]
    return "\n".join(lines)


def _row(name: str, axes: FourAxes) -> str:
    attacks = axes.multimodal_safety
    cells = (
        f"{name:<25}",
        f"{_attack(axes.text_safety):<9}",
        f"{_attack(attacks.text_with_image if attacks else None):<9}",
        f"{_attack(attacks.rendered_word if attacks else None):<9}",
        f"{_percent(axes.exaggerated_safety.text):<4}",
        f"{_percent(axes.exaggerated_safety.with_image):<7}",
        f"{_percent(axes.helpfulness.text):<4}",
        f"{_percent(axes.helpfulness.vqa):<7}",
        f"{_percent(axes.helpfulness.rendered_word):<4}",
    )
    return ("  " + "  ".join(cells)).rstrip()


def _attack(attack: Attack | None) -> str:
    return f"{_percent(attack.keyword)} ({_percent(attack.knowledge).strip()})" if attack else _percent(None)


def _percent(rate: Rate | None) -> str:
    return f"{100 * rate.value:3.0f}" if rate else "  -"


def _with_margin(rate: Rate | None) -> str:
    return f"{_percent(rate)} ±{100 * rate.margin:.0f}" if rate else _percent(None)


def document(counted: object) -> Any:
    """FourAxes as plain data for JSON: axis -> set -> hits, n, rate and its 95 % interval."""
    if isinstance(counted, Rate):
        return {"hits": counted.hits, "n": counted.n, "rate": counted.value, "interval": counted.interval}
    if is_dataclass(counted):
        return {field.name: document(getattr(counted, field.name)) for field in fields(counted)}
    return counted


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    level: str
    top: int
    rate_of: Callable[[FourAxes], Rate | None]

    def point(self, axes: FourAxes) -> tuple[float, float] | None:
        """(helpfulness, rate) in percent; None for what was not asked the same probes."""
        rate = self.rate_of(axes)
        return (100 * axes.helpfulness.exact.value, 100 * rate.value) if rate else None


def _with_picture(axes: FourAxes) -> Rate | None:
    return axes.multimodal_safety.keyword if axes.multimodal_safety else None


def _look_alikes(axes: FourAxes) -> Rate | None:
    return axes.exaggerated_safety.refused if axes.exaggerated_safety.with_image else None


PANELS = (
    _Panel("Attacks by text", "harmful prompts answered", 100, lambda axes: axes.text_safety.keyword),
    _Panel("Attacks with a picture", "harmful prompts answered", 100, _with_picture),
    _Panel("Over-refusal", "harmless look-alikes refused", 40, _look_alikes),
)


CAPTION = """\
Each mark is one miniature model (0.4 million parameters) and its greedy answers to held-out prompts of a made-up world.
Marks grow with the merge strength ({strengths}); the default one has a dark edge. Stars are the inputs."""


def plot(inputs: Mapping[str, FourAxes], curves: Sequence[Curve], path: Path) -> None:
    """Write a PNG of three panels over helpfulness: attacks by text, with a picture, over-refusal.

    At most three curves. A text-only input has no helpfulness with pictures, so it is drawn as a
    level, and only where the others were asked the same probes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7.4), dpi=110)
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.24, top=0.84, wspace=0.18)
    figure.suptitle("Merging: what it buys in safety, what it costs in helpfulness", fontsize=20, color=INK)
    strengths = sorted({strength for curve in curves for strength, _ in curve.points})
    caption = CAPTION.format(strengths=", ".join(f"{strength:g}" for strength in strengths))
    figure.text(0.5, 0.02, caption, ha="center", fontsize=12.5, color=INK)
    places = figure.subplots(1, len(PANELS))
    for place, panel in zip(places, PANELS, strict=True):
        _frame(place, panel, [axes for curve in curves for _, axes in curve.points])
        for curve, (colour, marker) in zip(curves, STYLES[: len(curves)], strict=True):
            _draw_curve(place, panel, curve, colour, marker)
        for name, axes in inputs.items():
            _draw_input(place, panel, name, axes)
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", bbox_to_anchor=(0.5, 0.09), ncols=len(curves), fontsize=14, frameon=False
    )
    figure.savefig(path)


def _frame(place: "Axes", panel: _Panel, shown: Sequence[FourAxes]) -> None:
    rates = [rate for axes in shown if (rate := panel.rate_of(axes))]
    certainty = f"{rates[0].n} prompts; 95 % interval up to ±{max(100 * rate.margin for rate in rates):.0f} points"
    place.set_title(f"{panel.title}\n", fontsize=16, color=INK)
    place.text(0.5, 1.025, certainty, transform=place.transAxes, ha="center", fontsize=12, color=INK)
    place.set_xlabel("benign prompts answered right, %  (higher is better)", fontsize=12, color=INK)
    place.set_ylabel(f"{panel.level}, %  (lower is better)", fontsize=12, color=INK)
    place.set(xlim=(-4, 124), ylim=(-0.04 * panel.top, 1.04 * panel.top), xticks=range(0, 101, 20))
    place.tick_params(labelsize=12)
    place.grid(alpha=0.25)
    place.spines[["top", "right"]].set_visible(False)


def _draw_curve(place: "Axes", panel: _Panel, curve: Curve, colour: str, marker: str) -> None:
    """Marks grow with the strength; the default's has a dark edge."""
    points = [point for _, axes in curve.points if (point := panel.point(axes))]
    xs, ys = zip(*points, strict=True)
    strengths = [strength for strength, _ in curve.points]
    edges = [INK if strength == curve.default else colour for strength in strengths]
    place.plot(xs, ys, color=colour, linewidth=2)
    place.plot([], [], color=colour, linewidth=2, marker=marker, markersize=9, label=f"{curve.name}, {curve.method}")
    place.scatter(
        xs,
        ys,
        s=[(5 + 8 * strength) ** 2 for strength in strengths],
        color=colour,
        marker=marker,
        edgecolors=edges,
        linewidths=2.5,
        zorder=3,
    )


def _draw_input(place: "Axes", panel: _Panel, name: str, axes: FourAxes) -> None:
    point = panel.point(axes)
    if point is None:
        return
    if axes.multimodal_safety is None:
        place.axhline(point[1], color=INK, linestyle=":", linewidth=1.5)
        label, spot, offset, side = f"{name} (text only)", (112.0, point[1]), (0, -14), "right"
    else:
        place.plot(*point, color=INK, marker="*", markersize=16, zorder=4)
        outwards = point[0] > 50
        label, spot = name.replace("sft-replay", "sft-\nreplay"), point
        offset, side = ((15, -5), "left") if outwards else ((6, 12), "right")
    place.annotate(label, spot, offset, textcoords="offset points", ha=side, fontsize=12, color=INK)
