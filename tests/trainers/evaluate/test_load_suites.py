"""Suites by their spec: halves and limits that are the same everywhere, and our own format."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from safegraft.errors import InputError, UsageError
from safegraft_trainers.evaluate import formats
from safegraft_trainers.evaluate.example import Axis, Example, Scoring
from safegraft_trainers.evaluate.formats import FORMATS, own
from safegraft_trainers.evaluate.suites import load_suite, load_suites


@pytest.fixture
def file(tmp_path: Path, make: SimpleNamespace) -> Path:
    own.save([make.exact(f"e{one}", "x") for one in range(200)], tmp_path / "tasks.jsonl")
    return tmp_path / "tasks.jsonl"


def ids(examples: object) -> list[str]:
    return [one.id for one in examples]  # type: ignore[attr-defined]


def test_halves_share_nothing_and_leave_nothing(file: Path) -> None:
    dev, test = (load_suite(f"safegraft={file}", split=half) for half in ("dev", "test"))
    assert sorted(ids(dev.examples) + ids(test.examples)) == sorted(f"e{one}" for one in range(200))
    assert 70 <= len(dev.examples) <= 130
    assert ids(dev.examples)[:5] == ["e4", "e5", "e6", "e7", "e8"], "a half must never change"


def test_a_half_does_not_depend_on_the_rest_of_the_file(file: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.jsonl"
    part.write_text("\n".join(file.read_text().splitlines()[::3]))
    whole = set(ids(load_suite(f"safegraft={file}", split="dev").examples))
    assert set(ids(load_suite(f"safegraft={part}", split="dev").examples)) == whole & set(
        ids(load_suite(f"safegraft={part}").examples)
    )


def test_a_limit_is_a_draw_that_keeps_the_order(file: Path) -> None:
    drawn = [ids(load_suite(f"safegraft={file}", limit=20, seed=seed).examples) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [int(one[1:]) for one in drawn[0]] == sorted(int(one[1:]) for one in drawn[0])
    assert len(drawn[0]) == 20
    half = load_suite(f"safegraft={file}", limit=20, split="dev")
    assert set(ids(half.examples)) <= set(ids(load_suite(f"safegraft={file}", split="dev").examples))


def test_suites_are_told_apart(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "more" / "tasks.jsonl"
    other.parent.mkdir()
    other.write_text(file.read_text())
    assert load_suite(f"safegraft={file}").name == "tasks"
    (tmp_path / "hard.jsonl").write_text(file.read_text())
    names = [one.name for one in load_suites([f"safegraft={file}", f"safegraft={tmp_path / 'hard.jsonl'}"])]
    assert names == ["tasks", "hard"]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("nope=x", {}, "'nope' is no format of prompts; there are .*safegraft"),
        ("safegraft", {}, "the format safegraft has no usual place"),
        ("safegraft=FILE", {"split": "train"}, "'train' is no split"),
        ("safegraft=FILE", {"limit": 0}, "leaves nothing to ask"),
    ],
)
def test_what_cannot_be_meant(spec: str, options: dict[str, object], message: str, file: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_suite(spec.replace("FILE", str(file)), **options)  # type: ignore[arg-type]


def test_every_format_cites_its_source_and_has_its_own_name() -> None:
    folder = Path(own.__file__).parent
    modules = [importlib.import_module(f"{formats.__name__}.{file.stem}") for file in folder.glob("[a-z]*.py")]
    found = [one for module in modules for one in vars(module).get("FORMATS", ())]
    assert sorted(one.name for one in found) == sorted(FORMATS), "a family is left out, or two have one name"
    assert all(one.reference.startswith("https://") for name, one in FORMATS.items() if name != "safegraft")


def test_our_own_format_keeps_everything(tmp_path: Path, make: SimpleNamespace) -> None:
    examples = [
        Example(
            "all",
            Axis.BIAS,
            Scoring.STEREOTYPE,
            "whö?\nreally",
            image=make.picture(),
            subset="s",
            system="be kind",
            references=("r",),
            choices=("a", "b"),
            answer=0,
        ),
        make.attack("plain"),
        Example("pair", Axis.BIAS, Scoring.LIKELIHOOD, "", choices=("x", "y")),
    ]
    own.save(examples, tmp_path / "mine.jsonl")
    back = own.load(str(tmp_path / "mine.jsonl"))
    assert [one.fingerprint() for one in back] == [one.fingerprint() for one in examples]
    assert back[0].image is not None
    assert back[0].image.open().size == (32, 32)


def test_all_problems_of_a_file_are_reported_together(tmp_path: Path) -> None:
    rows = [
        "no JSON",
        "[1]",
        json.dumps({"id": "a", "axis": "text_safety", "scoring": "attack"}),
        json.dumps({"id": "b", "axis": "speed", "scoring": "attack", "prompt": "p", "colour": 1}),
        json.dumps({"id": "c", "axis": "helpfulness", "scoring": "exact", "prompt": "p"}),
        json.dumps(
            {"id": "d", "axis": "helpfulness", "scoring": "choice", "prompt": "p", "choices": ["x", "y"], "answer": 2}
        ),
        json.dumps({"id": "e", "axis": "bias", "scoring": "likelihood", "prompt": "", "choices": ["x"]}),
        json.dumps({"id": "f", "axis": "helpfulness", "scoring": "exact", "prompt": "p", "references": "x"}),
        json.dumps({"id": "g", "axis": "text_safety", "scoring": "attack", "prompt": "p", "image": "none.png"}),
        json.dumps({"id": "h", "axis": "text_safety", "scoring": "attack", "prompt": "p"}),
        json.dumps({"id": "h", "axis": "text_safety", "scoring": "attack", "prompt": "p"}),
    ]
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(rows))
    with pytest.raises(InputError) as caught:
        own.load(str(file))
    told = {problem.where.rpartition(" ")[2]: problem.message for problem in caught.value.problems}
    for line, words in {
        "1": "is no JSON",
        "2": "is no JSON object",
        "3": "has no 'prompt'",
        "5": "'exact' needs 'references'",
        "6": "'answer', an index into them",
        "7": "needs two 'choices'",
        "8": "'references' has to be a list of texts",
        "9": "none.png cannot be read",
    }.items():
        assert words in told[line]
    messages = [problem.message for problem in caught.value.problems]
    assert any("'colour' is no key" in one for one in messages)
    assert any("'axis' has to be one of text_safety" in one for one in messages)
    assert any("the id 'h' stands for several examples" in one for one in messages)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a JSONL file"):
        own.load(str(tmp_path / "none.jsonl"))
