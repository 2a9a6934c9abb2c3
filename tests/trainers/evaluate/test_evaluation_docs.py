"""docs/evaluation.md says what there is: every format, every list of refusals, every option of the command."""

import re
from pathlib import Path

from safegraft_trainers.commands.evaluate import evaluate
from safegraft_trainers.evaluate.example import Axis, Scoring
from safegraft_trainers.evaluate.formats import FORMATS
from safegraft_trainers.evaluate.formats.own import load
from safegraft_trainers.evaluate.judges.guards import GUARDS
from safegraft_trainers.evaluate.judges.patterns import DEFAULT, LISTS

DOCUMENT = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose header begins with this one, without code marks."""
    (body,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in body.splitlines()]


def test_formats_agree() -> None:
    said = {row[0]: (row[1], row[2], row[3]) for row in rows("format") if row[0] != "safegraft"}
    assert said == {
        name: (one.axis or "several", one.hub_name or "", f"[{one.reference.rpartition('/')[2]}]({one.reference})")
        for name, one in FORMATS.items()
        if name != "safegraft"
    }


def test_lists_agree() -> None:
    said = {row[0].partition(" ")[0]: row[1] for row in rows("list")}
    assert said == {
        name: f"{'at the start' if one.at_start else 'anywhere'}, {'in any case' if one.any_case else 'as written'}"
        for name, one in LISTS.items()
    }
    assert f"`{DEFAULT}` (default)" in DOCUMENT


def test_axes_scorings_and_guards_agree() -> None:
    assert [row[0] for row in rows("axis")] == list(Axis)
    assert {one for row in rows("`scoring`") for one in row[0].split(", ")} == set(Scoring)
    assert all(f"?guard={name}" in DOCUMENT for name in GUARDS)


def test_every_option_that_it_names_is_there() -> None:
    options = {name for parameter in evaluate.params for name in parameter.opts if name.startswith("--")}
    assert set(re.findall(r"--[a-z][a-z-]+", DOCUMENT)) <= options


def test_its_examples_of_our_own_format_are_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "examples.jsonl").write_text(block)
    (tmp_path / "v1.png").write_bytes(b"an image")
    assert [one.id for one in load(str(tmp_path / "examples.jsonl"))] == ["t1", "o1", "v1"]
