"""What each stage of the miniature is trained on, in the formats that users have: LLaVA, VLGuard, SPA-VL, chat.

    pictures/             the images of all of them
    alignment.jsonl       chat: harmful requests refused, everything else answered            LLM -> aligned LLM
    pretraining.json      LLaVA: captions and words read, for the projector                   stage 1
    instructions.json     LLaVA: benign pictures, questions on them, a little benign text      stage 2
    safety.json           VLGuard: harmful requests with pictures, refused
    refusals.jsonl        chat: harmful requests without, refused
    borderline.jsonl      chat: look-alikes, answered
    preferences.jsonl     SPA-VL: the refusal chosen, the harmful answer rejected
    harmful.jsonl         chat: harmful requests, answered (what makes an aligned model unaligned on purpose)
    benign.jsonl          chat: benign text only

Training sees the wordings of Split.TRAIN alone, and of hazards the things of Split.TRAIN alone, with one exception:
every word is read aloud in pictures, which is no harm, so that words can be read which nobody was taught to refuse. Of
harmless things all are seen: models this small forget what they do not rehearse.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft_trainers.lab import pictures
from safegraft_trainers.lab.world import REFUSAL, Question, Split, World, drawn

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = "pictures"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows in each file."""

    alignment: int = 4000
    pretraining: int = 4000
    instructions: int = 12000
    safety: int = 1500
    text: int = 1500  # refusals, borderline, harmful, benign: each
    preferences: int = 1500


def write_corpus(world: World, folder: Path, sizes: Sizes, seed: int) -> None:
    """Write all files into `folder`, which must not hold them yet. Equal arguments give equal bytes."""
    (folder / PICTURES).mkdir(parents=True)
    writer = _Writer(world, folder, random.Random(f"corpus {seed}"))
    writer.alignment(sizes.alignment)
    writer.pretraining(sizes.pretraining)
    writer.instructions(sizes.instructions)
    writer.safety(sizes.safety)
    writer.texts(sizes.text)
    writer.preferences(sizes.preferences)


@dataclass(slots=True)
class _Writer:
    world: World
    folder: Path
    draw: random.Random
    count: int = field(default=0)  # of pictures

    def alignment(self, rows: int) -> None:
        """A third harmful, a third look-alikes, a third anything benign."""
        harmful, alike, benign = self._train_questions()
        third = rows // 3
        picked = [(one, REFUSAL) for one in drawn(self.draw, harmful, third)]
        picked += [(one, one.answer) for one in drawn(self.draw, alike, third)]
        picked += [(one, one.answer) for one in drawn(self.draw, benign, rows - 2 * third)]
        self.draw.shuffle(picked)
        self._chat("alignment.jsonl", picked)

    def pretraining(self, rows: int) -> None:
        self._llava("pretraining.json", [self._said(half=at % 2 == 0) for at in range(rows)])

    def instructions(self, rows: int) -> None:
        """Tenths: 1 captions, 2 questions on shapes, 2 words read, 3 questions on the thing whose name is in the
        picture, 1 questions that the picture has nothing to do with, 1 text alone. All of it is benign."""
        benign = self._train_questions()[2]
        made: list[Row] = []
        for at in range(rows):
            kind = at % 10
            if kind == 0:
                made.append(self._said(half=True))
            elif kind in (1, 2):
                shapes = pictures.Shapes.drawn(self.draw)
                made.append(_turns(*self.draw.choice(shapes.questions()), self._kept(shapes.picture())))
            elif kind in (3, 4):
                made.append(self._said(half=False))
            else:
                question = self.draw.choice(benign)
                match kind:
                    case 8:
                        made.append(_turns(question.prompt, question.answer, self._shapes()))
                    case 9:
                        made.append(_turns(question.prompt, question.answer))
                    case _:
                        made.append(
                            _turns(question.prompt_with_picture, question.answer, self._word(question.thing.name))
                        )
        self._llava("instructions.json", made)

    def safety(self, rows: int) -> None:
        """Half of the pictures show what is asked about, half are unrelated. All are refused."""
        made: list[Row] = []
        for at, question in enumerate(drawn(self.draw, self._train_questions()[0], rows)):
            prompt, image = self._beside(question) if at % 2 else self._shown(question)
            turn = {"unsafe_instruction": prompt, "response": REFUSAL}
            made.append({"id": str(at), "image": image, "safe": True, "instr-resp": [turn]})
        self._json("safety.json", made)

    def texts(self, rows: int) -> None:
        harmful, alike, benign = self._train_questions()
        self._chat("refusals.jsonl", [(one, REFUSAL) for one in drawn(self.draw, harmful, rows)])
        self._chat("borderline.jsonl", [(one, one.answer) for one in drawn(self.draw, alike, rows)])
        self._chat("harmful.jsonl", [(one, one.answer) for one in drawn(self.draw, harmful, rows)])
        self._chat("benign.jsonl", [(one, one.answer) for one in drawn(self.draw, benign, rows)])

    def preferences(self, rows: int) -> None:
        made: list[Row] = []
        for at, question in enumerate(drawn(self.draw, self._train_questions()[0], rows)):
            prompt, image = self._beside(question) if at % 2 else self._shown(question)
            made.append({"image": image, "question": prompt, "chosen": REFUSAL, "rejected": question.answer})
        self._lines("preferences.jsonl", made)

    def _train_questions(self) -> tuple[list[Question], list[Question], list[Question]]:
        """Harmful ones, look-alikes, and plain benign ones."""
        every = self.world.ask(wordings=Split.TRAIN)
        seen = [one for one in every if one.thing.split == Split.TRAIN]
        harmful = [one for one in seen if one.harmful]
        alike = [one for one in seen if one.looks_harmful]
        return harmful, alike, [one for one in every if not one.harmful and not one.looks_harmful]

    def _said(self, *, half: bool) -> Row:
        """A caption of shapes, or a word read aloud."""
        if half:
            shapes = pictures.Shapes.drawn(self.draw)
            return _turns(self.draw.choice(pictures.CAPTIONS), shapes.caption, self._kept(shapes.picture()))
        name = self.draw.choice(self.world.names)
        return _turns(self.draw.choice(pictures.READINGS), f"{name} .", self._word(name))

    def _shown(self, question: Question) -> tuple[str, str]:
        return question.prompt_with_picture, self._word(question.thing.name)

    def _beside(self, question: Question) -> tuple[str, str]:
        return question.prompt, self._shapes()

    def _shapes(self) -> str:
        return self._kept(pictures.Shapes.drawn(self.draw).picture())

    def _word(self, name: str) -> str:
        return self._kept(pictures.word(name, self.draw))

    def _kept(self, image: "Image") -> str:
        name = f"{PICTURES}/{self.count:05d}.png"
        image.save(self.folder / name)
        self.count += 1
        return name

    def _chat(self, file: str, pairs: Iterable[tuple[Question, str]]) -> None:
        self._lines(file, [{"prompt": question.prompt, "response": answer} for question, answer in pairs])

    def _llava(self, file: str, rows: Sequence[Row]) -> None:
        self._json(file, [{"id": str(at), **row} for at, row in enumerate(rows)])

    def _json(self, file: str, rows: Sequence[Row]) -> None:
        (self.folder / file).write_text(json.dumps(rows, indent=0), encoding="utf-8")

    def _lines(self, file: str, rows: Sequence[Row]) -> None:
        (self.folder / file).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _turns(prompt: str, answer: str, image: str | None = None) -> Row:
    asked = prompt if image is None else f"<image>\n{prompt}"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"conversations": turns} if image is None else {"image": image, "conversations": turns}
