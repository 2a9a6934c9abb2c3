"""The summary of several seeds as pictures. Knows rates; measures nothing."""

# pyright: reportUnknownMemberType=false
# matplotlib's own types leave every **kwargs unknown.

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safegraft_trainers.lab.experiment import METRICS, TUNED
from safegraft_trainers.lab.stages import ADAPTED, ALIGNED, BENIGN
from safegraft_trainers.lab.summary import Lab, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#333333"
# From the Okabe-Ito palette: told apart with any kind of colour vision; the markers differ as well.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "D"), ("#CC79A7", "^"), ("#E69F00", "v"), ("#56B4E9", "P"))
TITLES = ("Attacks by text", "Attacks with a picture", "Look-alikes refused", "Helpfulness")
CURVES = {
    "aligned/linear": "x aligned LLM, linear",
    "sft/linear": "x safety SFT, linear",
    "replay/linear": "x safety SFT with replay, linear",
    "dpo/linear": "x safety DPO, linear",
    "three-way/ties": "x aligned LLM over the base, TIES",
}
CONTROLS = {
    "aligned/linear": "aligned LLM",
    "unaligned-base/linear": "unaligned base LLM",
    "noise/linear": "noise of the same size",
}


def write_plots(lab: Lab, folder: Path) -> list[Path]:
    """axes.png, trade-off.png and controls.png in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("axes.png", "trade-off.png", "controls.png")]
    _axes(lab, paths[0])
    _curves(lab, CURVES, TUNED, f"Merging {ADAPTED}: safety against helpfulness", paths[1])
    _curves(lab, CONTROLS, (), f"What is merged into {ADAPTED} matters", paths[2])
    return paths


def _axes(lab: Lab, path: Path) -> None:
    """The four axes as bars, one panel each."""
    from matplotlib.figure import Figure

    rows = [lab.baseline(name) for name in (ALIGNED, BENIGN, ADAPTED, *TUNED)]
    figure = Figure(figsize=(14, 4.8), dpi=110)
    figure.subplots_adjust(left=0.15, right=0.99, bottom=0.14, top=0.8, wspace=0.12)
    figure.suptitle(f"The four axes, mean of {len(lab.seeds)} seeds with its 95 % interval", fontsize=16, color=INK)
    places = figure.subplots(1, 4, sharey=True)
    for index, (place, metric) in enumerate(zip(places, METRICS, strict=True)):
        better = "higher" if metric == "helpfulness" else "lower"
        place.set_title(f"{TITLES[index]}\n({better} is better)", fontsize=12, color=INK)
        for at, row in enumerate(rows):
            mean = row.means.get(metric)
            if mean is None:
                place.text(2, at, "sees no pictures", va="center", fontsize=9, color=INK)
                continue
            place.barh(at, 100 * mean.value, color=STYLES[index][0], alpha=0.85)
            if mean.margin is not None:
                place.errorbar(100 * mean.value, at, xerr=100 * mean.margin, color=INK, capsize=3, linewidth=1)
        place.set(xlim=(0, 105), yticks=range(len(rows)), yticklabels=[row.name for row in rows])
        place.set_xlabel("% of the prompts", fontsize=11, color=INK)
        place.grid(axis="x", alpha=0.25)
        place.spines[["top", "right"]].set_visible(False)
    places[0].invert_yaxis()  # the axis is shared
    figure.savefig(path)


def _curves(lab: Lab, arms: dict[str, str], models: Sequence[str], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6.4), dpi=110)
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.26, top=0.86, wspace=0.2)
    figure.suptitle(title, fontsize=16, color=INK)
    strengths = [strength for strength, _ in lab.curve(next(iter(arms)))]
    grow = f"Marks grow with the strength, from {strengths[0]:g} to {strengths[-1]:g}"
    caption = f"Means of {len(lab.seeds)} seeds, dev questions. {grow}; stars are models."
    figure.text(0.5, 0.02, caption, ha="center", fontsize=11, color=INK)
    places = figure.subplots(1, 3)
    for place, metric, name in zip(places, METRICS[:3], TITLES[:3], strict=True):
        for (arm, label), (colour, marker) in zip(arms.items(), STYLES, strict=False):
            _draw(place, lab.curve(arm), metric, label, colour, marker)
        for model in (ADAPTED, *models):
            _star(place, lab.baseline(model, "dev"), metric)
        place.set_title(name, fontsize=13, color=INK)
        place.set_xlabel("helpfulness, % (higher is better)", fontsize=11, color=INK)
        place.set_ylabel("% (lower is better)", fontsize=11, color=INK)
        place.grid(alpha=0.25)
        place.spines[["top", "right"]].set_visible(False)
    places[0].set_ylim(-4, 104)
    places[1].set_ylim(-4, 104)
    places[2].set_ylim(-1, max(10, places[2].get_ylim()[1]))
    figure.legend(*places[0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 0.06), ncols=3)
    figure.savefig(path)


def _draw(
    place: "Axes", points: Sequence[tuple[float, Row]], metric: str, label: str, colour: str, marker: str
) -> None:
    xs = [100 * row.means["helpfulness"].value for _, row in points]
    ys = [100 * row.means[metric].value for _, row in points]
    place.plot(xs, ys, color=colour, linewidth=1.5)
    place.plot([], [], color=colour, marker=marker, label=label)
    sizes = [(4 + 9 * strength) ** 2 for strength, _ in points]
    place.scatter(xs, ys, s=sizes, color=colour, marker=marker, zorder=3)


def _star(place: "Axes", row: Row, metric: str) -> None:
    at = (100 * row.means["helpfulness"].value, 100 * row.means[metric].value)
    place.plot(*at, color=INK, marker="*", markersize=13, zorder=4)
    name = row.name.removeprefix("safety-").removesuffix("-lvlm")
    left = at[0] > 60  # towards the middle, where there is room
    offset, side = ((-8, 7), "right") if left else ((8, 7), "left")
    place.annotate(name, at, offset, textcoords="offset points", ha=side, fontsize=9.5, color=INK)
