"""One run's tables as Markdown, its numbers as JSON, its pictures: everything in the folder of the run."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench import served
from bench.cases import FLOOR, METHODS, OURS_1, OURS_2, RIVALS, THEIRS, THEIRS_1
from bench.results import Results, Spread
from bench.startup import HEAVY
from bench.targets import MB, Outcome, comparisons, outcomes, second_thread

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- results: written by python -m bench --readme -->", "<!-- end of results -->"
NOTHING = "-"
MISSED = "**missed**"


def write_report(folder: Path, *, readme: bool = False) -> None:
    """results.json, table.md and the pictures beside the runs. readme: tables and pictures into README.md, too."""
    from bench.plots import draw  # matplotlib takes a second

    results = Results(folder)
    (folder / "results.json").write_text(json.dumps(results.to_dict(), indent=1) + "\n")
    main = main_tables(results)
    (folder / "table.md").write_text(f"{main}\n### Everything that was measured\n\n{_everything(results)}")
    pictures = draw(results, folder)
    if readme:
        shown = "".join(f"\n![{Path(name).stem}]({folder.name}/{name})\n" for name in pictures)
        README.write_text(with_results(README.read_text(), main + shown))


def with_results(text: str, tables: str) -> str:
    """A document with the part between the markers replaced. Raises ValueError when it has no markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def main_tables(results: Results) -> str:
    sections = {
        "Targets": _targets(outcomes(results)),
        "By method": _by_method(results),
        "Whole process, linear": _whole(results),
        "Served": _served(results),
        "Start": _start(results),
    }
    parts = [_origin(results)]
    parts += [f"### {title}\n\n{table}" for title, table in sections.items() if table]
    return "\n".join(parts)


def _origin(results: Results) -> str:
    facts = results.facts
    software = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    machine = f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB"
    return f"Profile `{facts['profile']}`, {facts['date']}. {machine}. Python {facts['python']}, {software}.\n"


def _targets(found: Iterable[Outcome]) -> str:
    rows: list[list[str]] = []
    for outcome in found:
        target = outcome.target
        sign = "≥" if target.at_least else "≤"
        value, where = outcome.measured or (None, "")
        verdict = {True: "met", False: MISSED, None: "not measured"}[outcome.met]
        rows.append(
            [target.what, f"{sign} {target.bound:g} {target.unit}", _number(value, target.unit), verdict, where]
        )
    return _table(["what", "target", "measured", "", "where"], rows)


def _by_method(results: Results) -> str:
    """Merges of two models in which one thread, two threads and the floor took part."""
    rows: list[list[str]] = []
    for method in METHODS:
        for case in comparisons(results, method, OURS_1, OURS_2, FLOOR):
            rows.append(
                [
                    case,
                    _number(results.median(case, OURS_1, "merge_cpu")),
                    _number(results.best(case, RIVALS, "merge_cpu")),
                    _number(results.ratio(case, RIVALS, (OURS_1,), "merge_cpu", "merge_cpu"), "x"),
                    _number(results.ratio(case, (OURS_1,), (FLOOR,), "merge_cpu", "whole_cpu"), "x"),
                    _number(results.median(case, OURS_1, "merge_wall")),
                    _number(results.median(case, OURS_2, "merge_wall")),
                    _number(second_thread(results, case), "x"),
                    _number(results.best(case, RIVALS, "merge_wall")),
                    _megabytes(results.median(case, OURS_2, "whole_peak_rss")),
                    _megabytes(results.median(case, OURS_2, "whole_peak_anonymous")),
                    _megabytes(results.best(case, RIVALS, "whole_peak_rss")),
                ]
            )
    head = ["method/size/inputs", "CPU s", "mergekit CPU s", "mergekit / ours", "ours / floor"]
    head += ["1 thread s", "2 threads s", "faster", "mergekit s", "RSS MB", "anon. MB", "mergekit RSS MB"]
    return _table(head, rows)


def _whole(results: Results) -> str:
    names = [case for inputs in (2, 3, 5) for case in comparisons(results, "linear", OURS_2, FLOOR, inputs=inputs)]
    names += results.cases("linear/*/LLMxLVLM")
    rows = [
        [case, side, *_times(results, case, side, "whole"), *_sizes(results, case, side)]
        for case in names
        for side in (OURS_2, OURS_1, THEIRS, THEIRS_1, FLOOR)
        if results.rounds(case, side)
    ]
    return _table(["case", "side", "wall s", "CPU s", "RSS MB", "anon. MB", "read MB", "written MB"], rows)


def _served(results: Results) -> str:
    rows: list[list[str]] = []
    for case in results.cases(f"{served.CASE}/*"):
        for side in (served.SAFEGRAFT, served.RAW):
            if results.rounds(case, side):
                first = results.of(case, side, "first_merged_byte")
                planned = results.of(case, side, "planned")
                rows.append(
                    [
                        case.partition("/")[2],
                        side,
                        _megabytes(results.median(case, side, "bytes")),
                        _spread(planned, 0.001),
                        _spread(first, 0.001),
                        _spread(results.of(case, side, "mb_per_s")),
                        _megabytes(results.median(case, side, "server_peak_rss")),
                        _megabytes(results.median(case, side, "server_peak_anonymous")),
                    ]
                )
    head = ["", "side", "MB", "plan ms", "first merged byte ms", "MB/s", "server RSS MB", "server anon. MB"]
    return _table(head, rows)


def _start(results: Results) -> str:
    rows: list[list[str]] = []
    for case in results.cases("start/*"):
        for side in ("safegraft", "mergekit"):
            if results.rounds(case, side):
                heavy = [name for name in HEAVY if results.median(case, side, f"imports_{name}")]
                cpu, memory = results.median(case, side, "whole_cpu"), results.median(case, side, "whole_peak_rss")
                wall = _spread(results.of(case, side, "whole_wall"))
                rows.append(
                    [case.partition("/")[2], side, wall, _number(cpu), _megabytes(memory), ", ".join(heavy) or "none"]
                )
    return _table(["", "side", "wall s", "CPU s", "RSS MB", "heavy imports"], rows)


def _everything(results: Results) -> str:
    rows = [
        [
            case,
            side,
            str(results.rounds(case, side)),
            *_times(results, case, side, "whole"),
            *_times(results, case, side, "merge"),
            *_sizes(results, case, side),
        ]
        for case in results.cases()
        if case.split("/")[0] in METHODS
        for side in (OURS_2, OURS_1, THEIRS, THEIRS_1, FLOOR)
        if results.rounds(case, side)
    ]
    head = ["case", "side", "runs", "wall s", "CPU s", "merge wall s", "merge CPU s"]
    return _table([*head, "RSS MB", "anon. MB", "read MB", "written MB"], rows)


def _times(results: Results, case: str, side: str, part: str) -> list[str]:
    return [_spread(results.of(case, side, f"{part}_{figure}")) for figure in ("wall", "cpu")]


def _sizes(results: Results, case: str, side: str) -> list[str]:
    names = ("peak_rss", "peak_anonymous", "bytes_read", "bytes_written")
    return [_megabytes(results.median(case, side, f"whole_{name}")) for name in names]


def _spread(spread: Spread | None, unit: float = 1.0) -> str:
    """The median, and from the least to the most."""
    if spread is None:
        return NOTHING
    median, least, most = (_number(value / unit) for value in (spread.median, spread.least, spread.most))
    return median if least == most else f"{median} ({least} to {most})"


def _megabytes(size: float | None) -> str:
    return NOTHING if size is None else f"{size / MB:.0f}"


def _number(value: float | None, unit: str = "") -> str:
    """Three digits that count, and a unit."""
    if value is None:
        return NOTHING
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {unit}".strip()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Nothing without rows."""
    return "".join(_lines(head, rows)) if rows else ""


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |\n"
    yield f"|{'|'.join('---' for _ in head)}|\n"
    for row in rows:
        yield f"| {' | '.join(row)} |\n"
