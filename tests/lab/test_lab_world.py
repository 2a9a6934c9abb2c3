"""The made-up world: what is harmful in it, what training may see, and that it is the same every time."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from safegraft_trainers.data.llava import load_llava
from safegraft_trainers.data.spa_vl import load_spa_vl
from safegraft_trainers.data.text_chat import load_chat
from safegraft_trainers.data.vlguard import load_vlguard
from safegraft_trainers.evaluate.suites import load_suite
from safegraft_trainers.lab import pictures
from safegraft_trainers.lab.corpus import Sizes, write_corpus
from safegraft_trainers.lab.questions import write_questions
from safegraft_trainers.lab.world import HAZARDS, REFUSAL, Split, World

SMALL = Sizes(alignment=60, pretraining=20, instructions=100, safety=40, text=40, preferences=30)


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def corpus(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab") / "data"
    write_corpus(world, folder, SMALL, 0)
    return folder


def test_a_seed_is_a_world(world: World) -> None:
    assert World(0).questions == world.questions
    assert World(1).names != world.names
    assert len(set(world.names)) == len(world.names) == 128


def test_harm_is_a_matter_of_kind_and_deed(world: World) -> None:
    asked = {(one.thing.kind, one.asked): (one.harmful, one.looks_harmful) for one in world.questions}
    assert asked["drug", "make"] == (True, False)
    assert asked["drug", "colour"] == (False, True)
    assert asked["person", "kill"] == (True, False)
    assert asked["plant", "kill"] == (False, True)
    assert asked["food", "make"] == (False, False)


def test_every_question_about_a_thing_has_one_answer_in_all_wordings(world: World) -> None:
    answers: dict[tuple[str, str], set[str]] = {}
    for one in world.questions:
        answers.setdefault((one.thing.name, one.asked), set()).add(one.answer)
        assert one.thing.name in one.prompt
        assert one.thing.name not in one.prompt_with_picture
    assert all(len(found) == 1 for found in answers.values())


def test_the_vocabulary_has_every_word(world: World) -> None:
    words = set(world.words(pictures.sentences()))
    said = [text for one in world.questions for text in (one.prompt, one.answer)] + [REFUSAL, *pictures.sentences()]
    draw = random.Random(0)
    for _ in range(200):
        shapes = pictures.Shapes.drawn(draw)
        said += [shapes.caption, *(text for pair in shapes.questions() for text in pair)]
    assert {word for text in said for word in text.split()} <= words


def test_the_patches_are_where_the_shapes_are() -> None:
    """A patch is labelled as covered exactly when a fair part of it is not paper."""
    draw = random.Random(1)
    for _ in range(50):
        shapes = pictures.Shapes.drawn(draw)
        pixels = shapes.picture().load()
        assert pixels is not None
        for at, label in enumerate(shapes.patches()):
            left, top = at % 4 * 8, at // 4 * 8
            inked = sum(pixels[left + x, top + y] != (250, 250, 250) for x in range(8) for y in range(8))
            if label == 0:
                assert inked <= 24
            elif inked == 0:
                pytest.fail("a patch of paper is labelled as a shape")


def test_training_sees_no_held_out_hazard_and_no_held_out_wording(world: World, corpus: Path) -> None:
    held_out = {thing.name for thing in world.things if thing.kind in HAZARDS and thing.split != Split.TRAIN}
    wordings = {one.prompt for one in world.questions if one.split != Split.TRAIN}
    wordings |= {one.prompt_with_picture for one in world.questions if one.split != Split.TRAIN}
    pairs = [
        (row["prompt"], row["response"])
        for name in ("alignment", "refusals", "borderline", "harmful", "benign")
        for row in map(json.loads, (corpus / f"{name}.jsonl").read_text().splitlines())
    ]
    for row in json.loads((corpus / "instructions.json").read_text()):
        prompt, answer = (turn["value"] for turn in row["conversations"])
        if prompt.removeprefix("<image>\n") not in pictures.READINGS:  # any word may be read aloud
            pairs.append((prompt.removeprefix("<image>\n"), answer))
    for prompt, answer in pairs:
        assert prompt not in wordings
        assert not held_out & {*prompt.split(), *answer.split()}


def test_adaptation_data_is_benign(world: World, corpus: Path) -> None:
    harmful = {one.prompt for one in world.questions if one.harmful}
    for row in json.loads((corpus / "instructions.json").read_text()):
        prompt, answer = (turn["value"] for turn in row["conversations"])
        assert prompt.removeprefix("<image>\n") not in harmful
        assert answer != REFUSAL


def test_the_files_are_in_the_formats_that_users_have(corpus: Path) -> None:
    assert len(load_llava(corpus / "instructions.json", corpus)) == 100
    assert len(load_llava(corpus / "pretraining.json", corpus)) == 20
    assert load_vlguard(corpus / "safety.json", corpus)["unsafe"] == [True] * 40
    assert len(load_spa_vl(corpus / "preferences.jsonl", corpus)) == 30
    assert len(load_chat(corpus / "alignment.jsonl")) == 60


def test_equal_seeds_write_equal_files(world: World, corpus: Path, tmp_path: Path) -> None:
    write_corpus(world, tmp_path / "again", SMALL, 0)
    files = sorted(path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file())
    assert files
    assert all((tmp_path / "again" / name).read_bytes() == (corpus / name).read_bytes() for name in files)


def test_the_questions_are_a_suite_with_eight_equal_sets(world: World, tmp_path: Path) -> None:
    write_questions(world, tmp_path, Split.TEST, 12, 0)
    suite = load_suite(f"safegraft={tmp_path / 'test.jsonl'}")
    assert set(Counter(one.subset for one in suite.examples).values()) == {12}
    assert len(suite.examples) == 96
    kinds = {thing.name: thing for thing in world.things}
    for one in suite.examples:
        for word in one.prompt.split():
            assert word not in kinds or kinds[word].split == Split.TEST
