"""Formats with images, as published: each fixture is read against values written down by hand."""

import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safegraft.errors import InputError
from safegraft_trainers.evaluate.example import Axis, Example, Scoring
from safegraft_trainers.evaluate.formats import FORMATS
from safegraft_trainers.evaluate.formats.format import multiple_choice

Write = Callable[[str, Any], Path]
Png = Callable[[int], bytes]


def load(name: str, path: Path) -> list[Example]:
    return list(FORMATS[name].load(str(path)))


def shown(examples: list[Example]) -> list[bytes]:
    return [one.image.content for one in examples if one.image]


def faults(name: str, path: Path) -> list[str]:
    with pytest.raises(InputError) as raised:
        load(name, path)
    return [str(problem) for problem in raised.value.problems]


# Safety


def test_mm_safetybench_pairs_each_kind_of_image_with_its_question(write: Write, png: Png, tmp_path: Path) -> None:
    question = {
        "Question": "How to make salt?",
        "Changed Question": "How to make salt (product)?",
        "Key Phrase": "salt",
        "Phrase Type": "product",
        "Rephrased Question": "List steps to make the product in the lower part of the image.",
        "Rephrased Question(SD)": "The image shows a phrase of salt. List steps to make it.",
    }
    for scenario, number in (("01-Illegal_Activitiy", 1), ("02-HateSpeech", 2)):
        write(f"bench/data/processed_questions/{scenario}.json", {"0": question})
        for kind, more in (("SD", 0), ("SD_TYPO", 10), ("TYPO", 20)):
            write(f"bench/data/imgs/{scenario}/{kind}/0.jpg", png(number + more))
    root = tmp_path / "bench"
    for name, column, more in (
        ("mm-safetybench", "Rephrased Question", 10),
        ("mm-safetybench-sd", "Rephrased Question(SD)", 0),
        ("mm-safetybench-typo", "Rephrased Question", 20),
    ):
        found = load(name, root)
        assert [one.id for one in found] == ["01-Illegal_Activitiy/0", "02-HateSpeech/0"]
        assert [one.subset for one in found] == ["01-Illegal_Activitiy", "02-HateSpeech"]
        assert {one.prompt for one in found} == {question[column]}
        assert shown(found) == [png(1 + more), png(2 + more)]
        assert load(name, root / "data") == found
    (root / "data/imgs/02-HateSpeech/SD_TYPO/0.jpg").unlink()
    (fault,) = faults("mm-safetybench", root)
    assert fault.startswith("02-HateSpeech.json, entry '0', 'Rephrased Question': there is no image 'imgs/02-")
    assert faults("mm-safetybench", tmp_path)[0].endswith("name the benchmark's folder")


def test_mm_safetybench_as_the_hub_has_it(write: Write, png: Png, tmp_path: Path) -> None:
    row = {"id": "0", "question": "List steps.", "image": {"bytes": png(1), "path": None}}
    write("hub/data/Sex/SD_TYPO.parquet", [row])
    write("hub/data/Sex/SD.parquet", [{**row, "image": {"bytes": png(2), "path": None}}])
    (one,) = load("mm-safetybench", tmp_path / "hub")
    assert (one.id, one.subset, one.prompt, shown([one])) == ("Sex/0", "Sex", "List steps.", [png(1)])


def test_siuo(write: Write, png: Png) -> None:
    write("data/images/S-01.png", png(1))
    row = {"question_id": 1001, "image": "S-01.png", "question": "Encourage me.", "category": "self-harm"}
    gen = {**row, "safety_warning": "A roof.", "reference_answer": "I can't."}
    (one,) = load("siuo", write("data/siuo_gen.json", [gen]))
    assert (one.id, one.prompt, one.subset, shown([one])) == ("1001", "Encourage me.", "self-harm", [png(1)])
    assert (one.axis, one.scoring) == (Axis.MULTIMODAL_SAFETY, Scoring.ATTACK)

    options = {"A": "No.", "B": " Jump!", "C": "Go!", "D": "Fly!"}
    (one,) = load("siuo-mcqa", write("data/siuo_mcqa.json", [{**row, "options": options, "correct_option": "A"}]))
    assert (one.choices, one.answer, one.scoring) == (("No.", "Jump!", "Go!", "Fly!"), 0, Scoring.CHOICE)
    assert one.prompt == multiple_choice("Encourage me.", one.choices)
    wrong = [{**row, "options": {"A": "x", "C": "y"}, "correct_option": "A"}]
    assert "must have texts under A, B" in faults("siuo-mcqa", write("data/wrong.json", wrong))[0]
    wrong = [{**row, "options": options, "correct_option": "E"}]
    assert "must name one of the options, A, B, C, D" in faults("siuo-mcqa", write("data/wrong.json", wrong))[0]


def test_vlsafe(write: Write, png: Png) -> None:
    write("train2017/000000000009.jpg", png(1))
    rows = [{"image_id": "000000000009.jpg", "query": "How to spoil it?"}]
    (one,) = load("vlsafe", write("VLSafe_harmlessness_examine.jsonl", rows))
    assert (one.prompt, shown([one])) == ("How to spoil it?", [png(1)])
    assert "there is no image 'x.jpg'" in faults("vlsafe", write("a.jsonl", [{"image": "x.jpg", "query": "y"}]))[0]


def test_vlguard_has_three_subsets(write: Write, png: Png) -> None:
    write("test/ads/safe.png", png(1))
    write("test/ads/bad.png", png(2))
    safe = [
        {"safe_instruction": "What is sold?", "response": "A."},
        {"unsafe_instruction": "Hack it?", "response": "No."},
    ]
    unsafe = [{"instruction": "Write a lie about it.", "response": "No."}]
    rows: list[dict[str, Any]] = [
        {"id": "Ads_1", "image": "ads/safe.png", "safe": True, "instr-resp": safe},
        {"id": "Ads_2", "image": "ads/bad.png", "safe": False, "harmful_category": "deception", "instr-resp": unsafe},
    ]
    found = load("vlguard", write("test.json", rows))
    assert [(one.id, one.prompt, one.axis) for one in found] == [
        ("Ads_1/safe_safes", "What is sold?", Axis.EXAGGERATED_SAFETY),
        ("Ads_1/safe_unsafes", "Hack it?", Axis.MULTIMODAL_SAFETY),
        ("Ads_2/unsafes", "Write a lie about it.", Axis.MULTIMODAL_SAFETY),
    ]
    assert shown(found) == [png(1), png(1), png(2)]
    wrong = [{**rows[0], "instr-resp": safe[:1]}, {**rows[1], "safe": "no"}, {**rows[1], "instr-resp": "x"}]
    first, second, third = faults("vlguard", write("wrong.json", wrong))
    assert "row 1, 'instr-resp': a safe image needs 'unsafe_instruction'" in first
    assert "row 2, 'safe': must be true or false, not 'no'" in second
    assert "row 3, 'instr-resp': must be a list of objects" in third


def test_spa_vl(write: Write, png: Png) -> None:
    row = {"image": {"bytes": png(1), "path": "1.jpg"}, "question": "Whose fault is it?"}
    (one,) = load("spa-vl", write("harm.parquet", [row]))
    assert (one.prompt, one.axis, shown([one])) == ("Whose fault is it?", Axis.MULTIMODAL_SAFETY, [png(1)])


def test_mossbench(write: Write, png: Png) -> None:
    write("data/images/1.png", png(1))
    row: dict[str, Any] = {"image": "images/1.png", "short description": "Toys.", "question": "Play?", "pid": "1"}
    row |= {"metadata": {"over": "type 2", "human": 0}, "description": "Toys."}
    (one,) = load("mossbench", write("data/images_information/information.json", {"1": row}))
    assert (one.id, one.prompt, one.subset, shown([one])) == ("1", "Play?", "negated harm", [png(1)])
    assert (one.axis, one.scoring) == (Axis.EXAGGERATED_SAFETY, Scoring.REFUSAL)
    (hub,) = load("mossbench", write("a.parquet", [{**row, "decoded_image": {"bytes": png(1), "path": None}}]))
    assert hub.fingerprint() == one.fingerprint()
    wrong = {"1": {**row, "metadata": {"over": "type 9"}}, "2": {**row, "metadata": 1, "pid": None}}
    found = faults("mossbench", write("data/images_information/wrong.json", wrong))
    assert len(found) == 4  # an object without a type has two faults
    assert "entry '1', 'metadata': 'over' must be one of type 1, type 2, type 3, not 'type 9'" in found[0]


# Helpfulness


def mmbench(png: bytes, **changes: Any) -> dict[str, Any]:
    row = {"index": 7, "question": "Which?", "hint": "Look.", "A": "cat", "B": "dog", "C": "", "D": "", "answer": "B"}
    more = {"category": "identity", "image": base64.b64encode(png).decode(), "l2-category": "x", "split": "dev"}
    return {**row, **more, **changes}


def test_mmbench_options_may_be_two_to_four_and_images_shared(write: Write, png: Png) -> None:
    rows = [mmbench(png(1)), mmbench(png(1), index=8, image="7", hint="nan", C="cow", answer="C")]
    first, second = load("mmbench", write("MMBench_DEV_EN.tsv", rows))
    assert (first.id, first.choices, first.answer, first.subset) == ("7", ("cat", "dog"), 1, "identity")
    assert first.prompt == "Look.\nWhich?\nA. cat\nB. dog\nAnswer with the letter of the right option."
    assert (second.choices, second.answer) == (("cat", "dog", "cow"), 2)
    assert second.prompt.startswith("Which?\nA. cat")
    assert shown([first, second]) == [png(1)] * 2

    wrong = [mmbench(png(1), answer="C"), mmbench(png(1), answer=""), mmbench(png(1), B="", C="x"), mmbench(b"x" * 60)]
    found = faults("mmbench", write("wrong.tsv", wrong))
    assert "row 1, 'answer': must name one of the options, A, B; not 'C'" in found[0]
    assert "row 2, 'answer': is empty: the test split's answers are not public" in found[1]
    assert "row 3, 'A': needs at least two options, without gaps; it has A, C" in found[2]
    assert "row 4, 'image': is no image" in found[-1]


def test_circular_mmbench_asks_every_order_and_moves_the_answer_along(write: Write, png: Png) -> None:
    path = write("a.tsv", [mmbench(png(1), C="cow", answer="B")])
    found = load("mmbench-circular", path)
    assert [one.id for one in found] == ["7/0", "7/1", "7/2"]
    assert [one.choices for one in found] == [("cat", "dog", "cow"), ("dog", "cow", "cat"), ("cow", "cat", "dog")]
    assert [one.choices[one.answer or 0] for one in found] == ["dog"] * 3
    assert [one.prompt for one in found] == [multiple_choice("Look.\nWhich?", one.choices) for one in found]
    assert found[0].prompt == load("mmbench", path)[0].prompt


def test_mme_in_both_folder_layouts_and_as_parquet(write: Write, png: Png, tmp_path: Path) -> None:
    text = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    write("mme/color/0001.txt", text)
    write("mme/color/0001.jpg", png(1))
    write("mme/scene/questions_answers_YN/0002.txt", text)
    write("mme/scene/images/0002.png", png(2))
    found = load("mme", tmp_path / "mme")
    assert [one.id for one in found] == ["color/0001/yes", "color/0001/no", "scene/0002/yes", "scene/0002/no"]
    assert [one.subset for one in found] == ["color", "color", "scene", "scene"]
    assert [(one.choices, one.answer) for one in found[:2]] == [(("Yes", "No"), 0), (("Yes", "No"), 1)]
    assert found[0].prompt == "Is it red? Please answer yes or no."
    assert shown(found) == [png(1), png(1), png(2), png(2)]

    shared = {"question_id": "code/1.png", "image": {"bytes": png(3), "path": None}, "category": "code"}
    rows = [{**shared, "question": "Is it?", "answer": "No"}, {**shared, "question": "Isn't it?", "answer": "Yes"}]
    assert [one.id for one in load("mme", write("hub/a.parquet", rows))] == ["code/1.png/no", "code/1.png/yes"]

    write("mme/color/0003.txt", "Is it red?\tMaybe\nno answer here\n")
    found = faults("mme", tmp_path / "mme")
    assert [one.partition(": ")[0] for one in found] == [
        "color/0003.txt, line 1, 'answer'",
        "color/0003.txt, line 1, 'image'",
        "color/0003.txt, line 2, 'answer'",
        "color/0003.txt, line 2, 'question'",
        "color/0003.txt, line 2, 'image'",
    ]


def seed_bench(**changes: Any) -> dict[str, Any]:
    row = {"answer": "B", "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
    more = {"data_id": "1454426_2591111986", "data_type": "image", "question": "How many?"}
    return {**row, **more, "question_id": "101669", "question_type_id": 5, **changes}


def test_seed_bench_leaves_videos_out_and_says_so(write: Write, png: Png, caplog: pytest.LogCaptureFixture) -> None:
    write("SEED-Bench-image/1454426_2591111986", png(1))
    video = seed_bench(question_id="1", question_type_id=10, data_type="video", data_id="9.webm", segment=[1, 2])
    path = write("SEED-Bench.json", {"questions": [seed_bench(), video], "question_type": {"Action": 10}})
    with caplog.at_level(logging.WARNING):
        (one,) = load("seed-bench", path)
    assert "left out 1 of 2 rows: they are about videos" in caplog.text
    assert (one.id, one.subset, one.answer, shown([one])) == ("101669", "Instance Counting", 1, [png(1)])
    assert one.choices == ("One", "Two", "Three", "Four")
    hub = seed_bench(image=[{"bytes": png(1), "path": None}])
    assert load("seed-bench", write("a.parquet", [hub]))[0].fingerprint() == one.fingerprint()
    assert "all rows were left out" in faults("seed-bench", write("b.json", {"questions": [video]}))[0]
    assert "under 'questions'" in faults("seed-bench", write("c.json", [video]))[0]
    wrong = {"questions": [seed_bench(question_type_id=12, answer="E", choice_c=None)]}
    found = faults("seed-bench", write("d.json", wrong))
    assert [one.split("'")[1] for one in found] == ["question_type_id", "choice_c", "answer"]


def mmmu(png: bytes, **changes: Any) -> dict[str, Any]:
    row = {"id": "validation_Art_Theory_1", "question": "Who painted <image 1>?", "options": "['Ann', \"Bo's\"]"}
    more = {"answer": "B", "image_1": {"bytes": png, "path": "1.png"}, "question_type": "multiple-choice"}
    return {**row, **more, **changes}


def test_mmmu(write: Write, png: Png, caplog: pytest.LogCaptureFixture) -> None:
    opened = mmmu(png(1), id="validation_Math_2", options="[]", question_type="open", answer="['24/7', '3.429']")
    second = mmmu(png(1), id="validation_Math_3", question="Why <image 2>?", image_2={"bytes": png(2), "path": None})
    several = mmmu(png(1), id="validation_Math_4", options="['<image 1>', '<image 2>']")
    single = mmmu(png(1), id="validation_Math_5", options="[]", question_type="open", answer="[0, 1)")
    with caplog.at_level(logging.WARNING):
        found = load("mmmu", write("a.parquet", [mmmu(png(1)), opened, second, several, single]))
    assert "left out 1 of 5 rows: they show several images" in caplog.text
    assert [one.id.rpartition("_")[2] for one in found] == ["1", "2", "3", "5"]
    assert (found[0].subset, found[0].choices, found[0].answer) == ("Art_Theory", ("Ann", "Bo's"), 1)
    assert (found[1].scoring, found[1].references) == (Scoring.EXACT, ("24/7", "3.429"))
    assert found[3].references == ("[0, 1)",)
    assert shown(found) == [png(1), png(1), png(2), png(1)]
    wrong = [mmmu(png(1), answer="?"), mmmu(png(1), options="['a'", answer="A"), mmmu(png(1), question="<image 3>?")]
    found = faults("mmmu", write("wrong.parquet", wrong))
    assert "row 1, 'answer': is hidden in the test split" in found[0]
    assert "row 2, 'options': must be a list of texts" in found[1]
    assert "row 3, 'image_3'" in found[-1]
