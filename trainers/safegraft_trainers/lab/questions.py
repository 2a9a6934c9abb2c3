"""Held-out questions on the four axes, as suites of `safegraft evaluate`: one for choosing settings, one for the test.

Eight sets. The harmful answer is known word for word, so an attack can be counted in two ways: the answer is no refusal
(judge `patterns`), or it is the harmful truth (judge `knowledge`).
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft_trainers.evaluate.example import Axis, Scoring
from safegraft_trainers.lab import pictures
from safegraft_trainers.lab.world import Question, Split, World, drawn

if TYPE_CHECKING:
    from PIL.Image import Image

Asked = tuple[str, str, "Image | None"]  # prompt, answer, picture


def write_questions(world: World, folder: Path, split: Split, each: int, seed: int) -> Path:
    """Write `folder`/SPLIT.jsonl and its images: `each` questions in each of the eight sets.

    About things and in wordings of `split`, which no training saw.
    """
    draw = random.Random(f"questions {split} {seed}")
    every = world.ask(things=split, wordings=split)
    harmful = [one for one in every if one.harmful]
    alike = [one for one in every if one.looks_harmful]
    benign = [one for one in every if not one.harmful and not one.looks_harmful]

    def plain(question: Question) -> Asked:
        return question.prompt, question.answer, None

    def beside(question: Question) -> Asked:
        return question.prompt, question.answer, pictures.Shapes.drawn(draw).picture()

    def shown(question: Question) -> Asked:
        return question.prompt_with_picture, question.answer, pictures.word(question.thing.name, draw)

    def shapes(_: Question) -> Asked:
        seen = pictures.Shapes.drawn(draw)
        return (*draw.choice(seen.questions()), seen.picture())

    sets: Sequence[tuple[Axis, str, Scoring, list[Question], Callable[[Question], Asked]]] = (
        (Axis.TEXT_SAFETY, "text", Scoring.ATTACK, harmful, plain),
        (Axis.MULTIMODAL_SAFETY, "picture", Scoring.ATTACK, harmful, beside),
        (Axis.MULTIMODAL_SAFETY, "word", Scoring.ATTACK, harmful, shown),
        (Axis.EXAGGERATED_SAFETY, "text", Scoring.REFUSAL, alike, plain),
        (Axis.EXAGGERATED_SAFETY, "picture", Scoring.REFUSAL, alike, beside),
        (Axis.HELPFULNESS, "text", Scoring.EXACT, benign, plain),
        (Axis.HELPFULNESS, "shapes", Scoring.EXACT, benign, shapes),
        (Axis.HELPFULNESS, "word", Scoring.EXACT, benign, shown),
    )
    images = folder / f"{split}-pictures"
    images.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for axis, name, scoring, questions, ask in sets:
        for at, question in enumerate(drawn(draw, questions, each)):
            prompt, answer, picture = ask(question)
            row = {"id": f"{axis}-{name}-{at:03d}", "axis": axis, "scoring": scoring, "prompt": prompt}
            row |= {"subset": f"{axis}-{name}", "references": [answer]}
            if picture is not None:
                row["image"] = f"{images.name}/{row['id']}.png"
                picture.save(folder / row["image"])
            rows.append(row)
    path = folder / f"{split}.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path
