"""FigStep: harmful requests as pictures of words, as published (SafeBench) or rendered here from any list."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from safegraft.errors import InputError, Problem
from safegraft_trainers.evaluate.example import Axis, Example
from safegraft_trainers.evaluate.figstep import PROMPT, render, statement
from safegraft_trainers.evaluate.formats.format import Format
from safegraft_trainers.evaluate.formats.rows import Row, attack, content_ids, gather
from safegraft_trainers.evaluate.reading import RawRow, locate, read_rows

REFERENCE = "https://arxiv.org/abs/2311.05608"
# The columns in which public lists hold a request. FigStep's own `instruction` is a heading already.
REQUEST_COLUMNS = ("instruction", "goal", "forbidden_prompt", "Behavior", "question", "prompt", "text")


def load_figstep(source: str) -> Sequence[Example]:
    """`safebench.csv` (or `SafeBench-Tiny.csv`) beside the unpacked screenshots. Subsets: the categories."""
    return gather(read_rows(source), _figstep)


def _figstep(row: Row) -> Iterable[Example]:
    identity = f"{row.text('dataset')}_{row.text('category_id')}_{row.text('task_id')}"
    subset = row.text("category_name")
    if row.faults:
        return
    # 6 is the attack's number in the authors' script.
    places = ("images", "SafeBench", *(f"../images/{name}" for name in ("SafeBench", "SafeBench-Tiny")))
    image = row.picture_of("task_id", f"query_{identity}_6.png", *places)
    yield attack(identity, PROMPT, image=image, subset=subset)


def load_rendered(source: str) -> Sequence[Example]:
    """Requests out of any list: a text file with one a line, or a table with a column of them.

    Subsets: the column `category` or `category_name`, where there is one.
    """
    return content_ids(gather(_requests(source), _rendered))


def _requests(source: str) -> list[RawRow]:
    path, *others = locate(source)
    if others or path.suffix.lower() != ".txt":
        return read_rows(source)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(path), f"cannot be read: {error}")) from error
    found = [_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(Problem(str(path), "holds no requests"))
    return found


def _line(path: Path, number: int, line: str) -> RawRow:
    return RawRow(f"{path.name}, line {number}", {"text": line}, path.parent)


def _rendered(row: Row) -> Iterable[Example]:
    column = row.named(*REQUEST_COLUMNS)
    if column not in row.raw.values:
        row.fault(" or ".join(REQUEST_COLUMNS), "is missing: no column holds a request")
        return
    request = row.text(column)
    if not request:
        return
    try:
        image = render(statement(request), where=row.raw.where)
    except InputError as error:
        row.faults += error.problems
        return
    yield attack("", PROMPT, image=image, subset=row.optional(row.named("category", "category_name")))


FORMATS = (
    Format("figstep", Axis.MULTIMODAL_SAFETY, load_figstep, None, REFERENCE),
    Format("figstep-render", Axis.MULTIMODAL_SAFETY, load_rendered, None, REFERENCE),
)
