"""The trade-off as a picture: every candidate, the front, the baselines; a panel for each two objectives.

Knows results and matplotlib.
"""

# matplotlib types its artists in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft.errors import output_errors
from safegraft_trainers.evaluate.results import Evaluation, Score
from safegraft_trainers.sweep.objective import Objective
from safegraft_trainers.sweep.result import CandidateResult, SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#222222", "#8a8a8a"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#5B5B9B")
MARKERS = "osD^vPXp"
COLUMNS = 3  # of panels
MARGIN = 0.07  # of a panel's range, around what it shows
LETTER, LINE = 0.014, 0.04  # about a label's size, in parts of its panel
CAPTIONS = {
    "dev": "Small numbers: the strength. Large with a dark edge: on the front of those that meet the constraints.\n"
    "Faint: violates a constraint. Stars: baselines. Of equal merges the last is seen.",
    "test": "Small numbers: the strength. Bars: 95 % intervals. Stars: baselines. Of equal merges the last is seen.",
}
TITLES = {
    "dev": "All merges, on the dev split where the winners are chosen",
    "test": "The winners, on held-out prompts",
}


def draw_fronts(result: SweepResult, out: Path) -> None:
    """Write front-dev.png and, where there are winners, front-test.png. Raises OutputError.

    A sweep with one objective has no front to draw: it is drawn against the strength.
    """
    if len(result.spec.objectives) == 1:
        _write(_by_strength(result), out / "front-dev.png")
        return
    candidates = [_Dot.of_candidate(one, one.dev, result) for one in result.candidates]
    looks = _looks([one.arm for one in candidates])
    baselines = [_Dot(one.name, "", one.dev) for one in result.baselines]
    _write(_fronts(result, candidates, baselines, looks, "dev"), out / "front-dev.png")
    if result.front:
        winners = [_Dot.of_candidate(one, one.test, result) for one in result.front]
        tested = [_Dot(one.name, "", one.test) for one in result.baselines]
        shown = {arm: look for arm, look in looks.items() if any(one.arm == arm for one in winners)}
        _write(_fronts(result, winners, tested, shown, "test"), out / "front-test.png")


@dataclass(frozen=True, slots=True)
class _Dot:
    """arm: what has a colour of its own; "" of baselines. fits: meets the constraints. wins: is on the front."""

    name: str
    arm: str
    evaluation: Evaluation | None
    strength: float | None = None
    fits: bool = True
    wins: bool = False

    @classmethod
    def of_candidate(cls, one: CandidateResult, evaluation: Evaluation | None, result: SweepResult) -> "_Dot":
        candidate = one.candidate
        arm = " · ".join(filter(None, (candidate.pairing, candidate.method)))
        wins = one.name in {winner.name for winner in result.front}
        return cls(one.name, arm, evaluation, candidate.strength, one.meets_constraints, wins)

    def score(self, objective: Objective) -> Score | None:
        return None if self.evaluation is None else self.evaluation.find(objective.metric)


@dataclass(frozen=True, slots=True)
class _Placed:
    """A dot that has both scores of a panel."""

    dot: _Dot
    x: Score
    y: Score

    @property
    def at(self) -> tuple[float, float]:
        return 100 * self.x.value, 100 * self.y.value


def _placed(dots: Sequence[_Dot], x: Objective, y: Objective) -> list[_Placed]:
    scored = [(one, one.score(x), one.score(y)) for one in dots]
    return [_Placed(one, across, up) for one, across, up in scored if across is not None and up is not None]


def _fronts(
    result: SweepResult, candidates: Sequence[_Dot], baselines: Sequence[_Dot], looks: "Looks", split: str
) -> Any:
    # The first objective is what matters most: it goes up, the others to the side.
    pairs = [(x, y) for y, x in combinations(result.spec.objectives, 2)]
    columns, rows = min(len(pairs), COLUMNS), -(-len(pairs) // COLUMNS)
    figure = _figure(3.2 + 6.2 * columns, 0.9 + 5.6 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (x, y) in zip(panels, pairs, strict=False):
        _draw(panel, x, y, _placed(candidates, x, y), _placed(baselines, x, y), looks, bars=split == "test")
    for panel in panels[len(pairs) :]:
        panel.set_visible(False)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=11)
    figure.suptitle(TITLES[split], fontsize=15, color=INK, fontweight="bold")
    figure.supxlabel(CAPTIONS[split] + _not_shown(result, [*candidates, *baselines]), fontsize=10.5, color=FAINT)
    return figure


def _not_shown(result: SweepResult, dots: Sequence[_Dot]) -> str:
    objectives = result.spec.objectives
    left_out = [one.name for one in dots if not one.arm and any(one.score(each) is None for each in objectives)]
    return f"\nNot in every panel, for lack of a score: {', '.join(left_out)}." if left_out else ""


Looks = dict[str, tuple[str, str]]  # colour and marker of each arm


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _looks(arms: Sequence[str]) -> Looks:
    known = list(dict.fromkeys(arms))
    # Colours repeat after eight arms, markers shift then: no two of 64 look alike.
    looks = [(COLOURS[n % 8], MARKERS[(n + n // 8) % 8]) for n in range(len(known))]
    return dict(zip(known, looks, strict=True))


def _draw(
    panel: "Axes",
    x: Objective,
    y: Objective,
    candidates: Sequence[_Placed],
    baselines: Sequence[_Placed],
    looks: Looks,
    *,
    bars: bool,
) -> None:
    _range(panel, [*candidates, *baselines], bars=bars)
    for arm, (colour, marker) in looks.items():
        own = sorted((one for one in candidates if one.dot.arm == arm), key=lambda one: one.dot.strength or 0.0)
        panel.plot([], [], color=colour, marker=marker, linestyle="-", linewidth=1, markersize=8, label=arm)
        if not bars:  # the way of an arm as it grows stronger
            panel.plot(*zip(*(one.at for one in own), strict=True), color=colour, linewidth=1, alpha=0.35)
        for one in own:
            _mark(panel, one, colour, marker, bars=bars)
    for one in baselines:
        _mark(panel, one, INK, "*", bars=bars, size=15)
    _label_all(panel, candidates, baselines)
    panel.set_xlabel(_label(x, "→" if x.direction == "higher" else "←"), fontsize=12, color=INK)
    panel.set_ylabel(_label(y, "→" if y.direction == "higher" else "←"), fontsize=12, color=INK)
    _best_corner(panel, x, y)
    panel.grid(alpha=0.25)
    panel.tick_params(labelsize=11, colors=INK)
    panel.spines[["top", "right"]].set_visible(False)


def _mark(panel: "Axes", one: _Placed, colour: str, marker: str, *, bars: bool, size: float = 7) -> None:
    dot = one.dot
    if bars:
        panel.errorbar(*one.at, xerr=_arms(one.x), yerr=_arms(one.y), color=colour, alpha=0.3, linewidth=1.2)
    panel.plot(
        *one.at,
        color=colour,
        marker=marker,
        markersize=11 if dot.wins else size,
        markeredgecolor=INK if dot.wins else colour,
        markeredgewidth=1.6 if dot.wins else 0.5,
        alpha=1.0 if dot.fits else 0.3,
        zorder=(4 if dot.wins else 3) if dot.arm else 5,
    )


def _arms(score: Score) -> list[list[float]]:
    return [[100 * (score.value - score.low)], [100 * (score.high - score.value)]]


def _label_all(panel: "Axes", candidates: Sequence[_Placed], baselines: Sequence[_Placed]) -> None:
    """Names of the baselines, then strengths: those of the front first, and none where it would cover another."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="white")]  # what lies below a label does not strike it out
    taken: list[_Box] = []
    ranked = sorted(candidates, key=lambda one: (not one.dot.wins, not one.dot.fits))
    for one in [*baselines, *(one for one in ranked if one.dot.strength is not None)]:
        baseline = not one.dot.arm
        text = one.dot.name if baseline else f"{one.dot.strength:g}"
        box = _Box.of(panel, one.at, text)
        if not baseline and any(box.covers(other) for other in taken):
            continue
        taken.append(box)
        panel.annotate(
            text,
            one.at,
            (-8, 7) if box.leftwards else (8, 7),
            ha="right" if box.leftwards else "left",
            textcoords="offset points",
            fontsize=11 if baseline else 9.5,
            color=INK if baseline or one.dot.wins else FAINT,
            path_effects=halo,
            zorder=6,
        )


@dataclass(frozen=True, slots=True)
class _Box:
    """About where a label is, in parts of its panel. leftwards: of its mark, where there is more room."""

    left: float
    right: float
    bottom: float
    leftwards: bool

    @classmethod
    def of(cls, panel: "Axes", at: tuple[float, float], text: str) -> "_Box":
        (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
        x, y = (at[0] - left) / (right - left), (at[1] - bottom) / (top - bottom)
        width = LETTER * len(text) + 2 * LETTER
        leftwards = x + width > 1
        return cls(x - width if leftwards else x, x if leftwards else x + width, y, leftwards)

    def covers(self, other: "_Box") -> bool:
        return self.left < other.right and other.left < self.right and abs(self.bottom - other.bottom) < LINE


def _range(panel: "Axes", shown: Sequence[_Placed], *, bars: bool) -> None:
    for scores, set_limits in (
        ([one.x for one in shown], panel.set_xlim),
        ([one.y for one in shown], panel.set_ylim),
    ):
        low = min((100 * (one.low if bars else one.value) for one in scores), default=0.0)
        high = max((100 * (one.high if bars else one.value) for one in scores), default=100.0)
        margin = MARGIN * max(high - low, 10.0)
        set_limits(low - margin, high + margin)


def _label(objective: Objective, arrow: str) -> str:
    name = objective.metric.replace("_", " ")
    return f"{name}, %   ({objective.direction} is better {arrow})"


def _best_corner(panel: "Axes", x: Objective, y: Objective) -> None:
    right, up = x.direction == "higher", y.direction == "higher"
    arrow = {(True, True): "↗", (True, False): "↘", (False, True): "↖", (False, False): "↙"}[right, up]
    panel.text(
        0.985 if right else 0.015,
        0.985 if up else 0.015,
        f"best {arrow}",
        transform=panel.transAxes,
        ha="right" if right else "left",
        va="top" if up else "bottom",
        fontsize=11,
        color=FAINT,
        style="italic",
    )


def _by_strength(result: SweepResult) -> Any:
    """The one objective over the strength, a line for each arm; baselines as levels."""
    objective = result.spec.objectives[0]
    figure = _figure(9, 6)
    panel = figure.subplots()
    dots = [_Dot.of_candidate(one, one.dev, result) for one in result.candidates]
    for arm, (colour, marker) in _looks([one.arm for one in dots]).items():
        own = [(one.strength or 0.0, score) for one in dots if one.arm == arm and (score := one.score(objective))]
        own.sort(key=lambda point: point[0])
        panel.plot([at for at, _ in own], [100 * one.value for _, one in own], color=colour, marker=marker, label=arm)
    for one, style in zip(result.baselines, cycle(("--", ":", "-.")), strict=False):
        score = one.dev.find(objective.metric)
        if score is not None:
            panel.axhline(100 * score.value, color=INK, linestyle=style, linewidth=1.2, label=one.name)
    panel.set_xlabel("strength: the share of a pairing's first model", fontsize=12, color=INK)
    panel.set_ylabel(_label(objective, "→" if objective.direction == "higher" else "←"), fontsize=12, color=INK)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    figure.suptitle("Merges on the dev split", fontsize=15, color=INK, fontweight="bold")
    return figure


def _write(figure: Any, path: Path) -> None:
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        figure.savefig(draft, format="png")
        os.replace(draft, path)
