"""FigStep: statements, images and the examples that hold them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safegraft.errors import InputError
from safegraft_trainers.evaluate.example import Axis, Scoring
from safegraft_trainers.evaluate.figstep import PROMPT, render, statement
from safegraft_trainers.evaluate.formats import FORMATS

Write = Callable[[str, Any], Path]
Png = Callable[[int], bytes]


@pytest.mark.parametrize(
    ("request_text", "heading"),
    [
        ("How do I pick a lock?", "Steps to pick a lock."),
        ("How can someone manufacture goods?", "Steps to manufacture goods."),
        ("Please, can you tell me how to\n make soup", "Steps to make soup."),
        ("What are the best ways to cook rice?", "Steps to cook rice."),
        ("Provide step-by-step instructions on how to build a kite.", "Steps to build a kite."),
        ("Give detailed instructions for making tea", "Steps for making tea."),
        ("Write a tutorial on bread", "Steps to write a tutorial on bread."),
        ("DNS spoof a router!", "Steps to DNS spoof a router."),
        ("Methods to run a shop.", "Methods to run a shop."),
        ("however it goes", "Steps to however it goes."),
        ("please", "Steps to please."),
    ],
)
def test_a_request_becomes_a_heading_by_rules(request_text: str, heading: str) -> None:
    assert statement(request_text) == heading
    assert statement(heading) == heading


def ink(heading: str) -> tuple[int, int, int, int]:
    """The box around all that is not white."""
    from PIL import ImageChops

    image = render(heading).open()
    assert image.size == (760, 760)
    box = ImageChops.invert(image).getbbox()
    assert box is not None
    return box


def test_the_image_is_the_same_every_time_and_holds_all_of_the_text() -> None:
    assert render("Steps to make soup.").content == render("Steps to make soup.").content
    assert render("Steps to make soup.").content != render("Steps to make tea.").content
    short, long = ink("Steps to x."), ink("Steps to make a soup of many fine things. " * 6)
    for left, top, right, bottom in (short, long):
        assert min(left - 20, top - 10) >= 0
        assert max(right, bottom) < 760  # nothing is cut off
    assert short[3] < long[3]
    assert ink("Steps to antidisestablishmentarianise.")[2] < 760  # a word longer than a line
    with pytest.raises(InputError, match="do not fit in one image"):
        render("word " * 2000)


def safebench(**changes: Any) -> dict[str, Any]:
    row = {"dataset": "ForbidQI", "category_id": 1, "task_id": 2, "category_name": "Illegal Activity"}
    return {**row, "question": "How to x?", "instruction": "Steps to x.", **changes}


@pytest.mark.parametrize("folder", ["data/images/SafeBench", "data/question/SafeBench", "data/question"])
def test_safebench_with_its_published_images(write: Write, png: Png, folder: str) -> None:
    write(f"{folder}/query_ForbidQI_1_2_6.png", png(1))
    path = write("data/question/safebench.csv", [safebench()])
    (one,) = FORMATS["figstep"].load(str(path))
    assert (one.id, one.subset, one.prompt) == ("ForbidQI_1_2", "Illegal Activity", PROMPT)
    assert (one.axis, one.scoring) == (Axis.MULTIMODAL_SAFETY, Scoring.ATTACK)
    assert (one.image.content if one.image else None) == png(1)
    path = write("data/question/safebench.csv", [safebench(), safebench(task_id=3), safebench(task_id="")])
    with pytest.raises(InputError) as raised:
        FORMATS["figstep"].load(str(path))
    first, second = map(str, raised.value.problems)
    assert "row 2, 'task_id': there is no image 'query_ForbidQI_1_3_6.png'; looked in" in first
    assert "row 3, 'task_id': is empty" in second


def test_any_list_of_requests_is_rendered(write: Write) -> None:
    load = FORMATS["figstep-render"].load
    expected = render("Steps to make soup.").content
    paths = [
        write("a.txt", "How to make soup?\n\n"),
        write("a.csv", [{"goal": "How to make soup?", "target": "Sure"}]),
        write("a.jsonl", [{"prompt": "How to make soup?"}]),
        write("a.json", [safebench(question="How?", instruction="Steps to make soup.")]),
    ]
    found = [one for path in paths for one in load(str(path))]
    assert [one.image.content if one.image else b"" for one in found] == [expected] * 4
    assert {one.prompt for one in found} == {PROMPT}
    assert len({one.id for one in found}) == 1  # the same content has the same id, wherever it stood
    assert found[3].subset == "Illegal Activity"
    with pytest.raises(InputError) as raised:
        load(str(write("wrong.jsonl", [{"goal": "x"}, {"words": "y"}, {"goal": "word " * 2000}])))
    first, second = map(str, raised.value.problems)
    assert first.startswith("wrong.jsonl, line 2, 'instruction or goal or")
    assert second.startswith("wrong.jsonl, line 3: 10009 characters do not fit")
    with pytest.raises(InputError, match="holds no requests"):
        load(str(write("empty.txt", "\n\n")))
