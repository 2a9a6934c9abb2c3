"""One run's pictures. Colours that the colour-blind tell apart (Okabe and Ito's)."""

# pyright: basic
# (matplotlib's types are incomplete)

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench import served
from bench.cases import FLOOR, METHODS, OURS_1, OURS_2, RIVALS, THEIRS, THEIRS_1
from bench.results import Results
from bench.shapes import ITEM_BYTES, SIZES
from bench.targets import LESS_CPU, MB, MEMORY_MB, comparisons

BLUE, SKY, RED, ORANGE, GREY, GREEN, PINK = "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#7F7F7F", "#009E73", "#CC79A7"
COLOURS = {OURS_2: BLUE, OURS_1: SKY, THEIRS: ORANGE, THEIRS_1: RED, FLOOR: GREY}
MARKERS = {OURS_2: "o", OURS_1: "s", THEIRS: "^", THEIRS_1: "v", FLOOR: "x"}
WIDTH = 9.0
GB = 1e9


def draw(results: Results, folder: Path) -> list[str]:
    """Each picture for which there are runs; those of an earlier run go. Returns the names of the files."""
    drawn: list[str] = []
    pictures = {"methods": _methods, "size": _size, "inputs": _inputs, "memory": _memory, "served": _served}
    with plt.rc_context(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.axisbelow": True,
            "axes.titlesize": 11,
        }
    ):
        for name, picture in pictures.items():
            file = folder / f"{name}.png"
            file.unlink(missing_ok=True)
            figure = picture(results)
            if figure is not None:
                figure.savefig(file, dpi=130, bbox_inches="tight")
                plt.close(figure)
                drawn.append(file.name)
    return drawn


def _methods(results: Results) -> Any:
    """How much less a merge computes than mergekit's, by method."""
    found: list[tuple[str, float]] = []
    for method in METHODS:
        for case in comparisons(results, method, OURS_1)[::-1]:
            ratio = results.ratio(case, RIVALS, (OURS_1,), "merge_cpu", "merge_cpu")
            if ratio is not None:
                found.append((case, ratio))
                break
    if not found:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 0.42 * len(found) + 1.6))
    places = range(len(found))
    axes.barh(places, [ratio for _, ratio in found], color=BLUE, height=0.62, label="measured")
    marked = False
    for place, (case, ratio) in zip(places, found, strict=True):
        target = LESS_CPU.get(case.split("/")[0])
        axes.text(1.06 * max(ratio, target or 0), place, f"{ratio:.1f}x", va="center")
        if target:
            axes.plot(
                [target, target], [place - 0.42, place + 0.42], color=RED, lw=3, label=None if marked else "target"
            )
            marked = True
    axes.axvline(1, color="black", lw=1)
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, *(0.8 * ratio for _, ratio in found)), 1.6 * max(ratio for _, ratio in found) + 5)
    _tick_plainly(axes.xaxis, "x")
    axes.set_yticks(places, [_short(case) for case, _ in found])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("CPU time of mergekit's merge / of safegraft's, one thread (log scale)")
    axes.set_title("CPU time of a merge, mergekit over safegraft: more is better")
    axes.legend(loc="lower right", frameon=False)
    return figure


def _size(results: Results) -> Any:
    """Whole process and CPU of linear merges over the model's size."""
    sides = (THEIRS, THEIRS_1, OURS_1, OURS_2, FLOOR)
    lines = {side: comparisons(results, "linear", side) for side in sides}
    if max(map(len, lines.values())) < 2:
        return None
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.8))
    for axes, figure_name, title in zip(panels, ("wall", "cpu"), ("Wall time", "CPU time"), strict=True):
        for side, cases in lines.items():
            _curve(axes, results, side, cases, [_gigabytes(case) for case in cases], f"whole_{figure_name}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        _tick_sizes(axes, [case for cases in lines.values() for case in cases])
        _tick_plainly(axes.yaxis)
        axes.set_xlabel("size of each model, GB (log scale)")
        axes.set_ylabel("seconds (log scale)")
        axes.set_title(title)
    figure.suptitle("Linear merge of 2 models, whole process", fontsize=11)
    figure.tight_layout()
    _legend_below(figure, panels[0])
    return figure


def _inputs(results: Results) -> Any:
    """Time of a merge over the number of models."""
    counts = (2, 3, 5)
    methods = [
        (method, size)
        for method in METHODS
        for size in SIZES
        if sum(bool(results.rounds(f"{method}/{size}/{count}", OURS_2)) for count in counts) > 1
    ]
    if not methods:
        return None
    figure, panels = plt.subplots(1, len(methods), figsize=(WIDTH, 3.8), squeeze=False)
    for axes, (method, size) in zip(panels[0], methods, strict=True):
        for side in (THEIRS, THEIRS_1, OURS_1, OURS_2, FLOOR):
            cases = {
                count: f"{method}/{size}/{count}"
                for count in counts
                if results.rounds(f"{method}/{size}/{count}", side)
            }
            if len(cases) > 1:
                figure_name = "whole_cpu" if side == FLOOR else "merge_cpu"
                _curve(axes, results, side, list(cases.values()), list(cases), figure_name)
        axes.set_xticks(counts)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("models merged")
        axes.set_title(f"{method}, {_spaced(size)} a model")
    panels[0][0].set_ylabel("CPU seconds of the merge")
    figure.tight_layout()
    _legend_below(figure, panels[0][0])
    return figure


def _memory(results: Results) -> Any:
    """Peak memory over the model's size."""
    lines = {method: cases for method in METHODS if len(cases := comparisons(results, method, OURS_2)) > 1}
    lvlm = [f"linear/{size}/LLMxLVLM" for size in SIZES]
    lvlm = [case for case in lvlm if results.rounds(case, OURS_2)]
    if len(lvlm) > 1:
        lines["linear, LLM x LVLM"] = lvlm
    if not lines:
        return None
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 4.2), sharey=True)
    theirs = comparisons(results, "linear", THEIRS_1)
    shapes = "osD^vP*"
    colours = (BLUE, GREEN, PINK, SKY, ORANGE, "black")
    for axes, name, title in zip(
        panels,
        ("whole_peak_rss", "whole_peak_anonymous"),
        ("Resident", "Anonymous (without mapped files)"),
        strict=True,
    ):
        for number, (label, cases) in enumerate(lines.items()):
            values = [(results.median(case, OURS_2, name) or 0) / MB for case in cases]
            axes.plot(
                [_gigabytes(case) for case in cases],
                values,
                color=colours[number % len(colours)],
                marker=shapes[number % len(shapes)],
                ms=6,
                label=f"safegraft, {label}",
            )
        if theirs:
            values = [(results.median(case, THEIRS_1, name) or 0) / MB for case in theirs]
            axes.plot(
                [_gigabytes(case) for case in theirs], values, color=RED, marker="v", ls="--", label="mergekit, linear"
            )
        axes.axhline(MEMORY_MB, color=GREY, ls=":", lw=2, label=f"target: {MEMORY_MB:.0f} MB at most")
        axes.set_xscale("log")
        _tick_sizes(axes, [case for cases in lines.values() for case in cases])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("size of each model, GB (log scale)")
        axes.set_title(title)
    panels[0].set_ylabel("peak memory, MB")
    figure.tight_layout()
    _legend_below(figure, panels[0])
    return figure


def _served(results: Results) -> Any:
    """What a client gets a second."""
    rows = [
        ("raw gRPC, down", served.KEPT, served.RAW),
        ("merge kept on the server", served.KEPT, served.SAFEGRAFT),
        ("merge computed for the call", served.COMPUTED, served.SAFEGRAFT),
        ("finished merge, from disk", served.STORED, served.SAFEGRAFT),
        ("raw gRPC, up", served.UPLOAD, served.RAW),
        ("upload of a checkpoint", served.UPLOAD, served.SAFEGRAFT),
    ]
    found = [(label, spread) for label, case, side in rows if (spread := results.of(case, side, "mb_per_s"))]
    if not found:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 0.45 * len(found) + 1.4))
    medians = [spread.median for _, spread in found]
    spreads = [
        [spread.median - spread.least for _, spread in found],
        [spread.most - spread.median for _, spread in found],
    ]
    colours = [GREY if label.startswith("raw") else BLUE for label, _ in found]
    axes.barh(range(len(found)), medians, xerr=spreads, color=colours, height=0.62, error_kw={"capsize": 3, "lw": 1})
    for place, (_, spread) in enumerate(found):
        axes.text(spread.most, place, f"   {spread.median:.0f}", va="center")
    axes.set_yticks(range(len(found)), [label for label, _ in found])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.12 * max(spread.most for _, spread in found))
    axes.set_xlabel("MB/s over loopback (median, least and most)")
    axes.set_title("What a client receives or sends a second")
    return figure


def _curve(axes: Axes, results: Results, side: str, cases: Sequence[str], places: Sequence[float], figure: str) -> None:
    """Medians, with bars from the least to the most."""
    spreads = [results.of(case, side, figure) for case in cases]
    found = [(place, spread) for place, spread in zip(places, spreads, strict=True) if spread]
    if found:
        medians = [spread.median for _, spread in found]
        below = [spread.median - spread.least for _, spread in found]
        above = [spread.most - spread.median for _, spread in found]
        axes.errorbar(
            [place for place, _ in found],
            medians,
            yerr=[below, above],
            color=COLOURS[side],
            marker=MARKERS[side],
            ms=6,
            capsize=3,
            label=side,
        )


def _tick_sizes(axes: Axes, cases: Sequence[str]) -> None:
    ticks = {_gigabytes(case): case.split("/")[1] for case in cases}
    axes.set_xticks(list(ticks), [name.removesuffix("GB") for name in ticks.values()])
    axes.xaxis.set_minor_locator(NullLocator())


def _tick_plainly(axis: Axis, unit: str = "") -> None:
    """1, 2, 5, 10, ... on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))


def _legend_below(figure: Any, axes: Axes) -> None:
    lines, labels = axes.get_legend_handles_labels()
    figure.legend(lines, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False)


def _gigabytes(case: str) -> float:
    size = SIZES[case.split("/")[1]]
    return sum(prod(shape) for _, shape in size.llm()) * ITEM_BYTES / GB


def _short(case: str) -> str:
    method, size, _ = case.split("/")
    return f"{method}, {_spaced(size)}"


def _spaced(size: str) -> str:
    return f"{size[:-2]} {size[-2:]}" if size[-2:] in ("GB", "MB") else size
