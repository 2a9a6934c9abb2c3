"""safegraft's own format: JSON Lines, an example a line, for what no public format can say.

    {"id": "t1", "axis": "text_safety", "scoring": "attack", "prompt": "...", "references": ["..."]}
    {"id": "v1", "axis": "helpfulness", "scoring": "choice", "prompt": "...", "image": "pictures/v1.png",
     "choices": ["red", "blue"], "answer": 1}

The keys are the fields of Example. id, axis, scoring and prompt have to be there; an image is a path, relative to the
file. Knows files, no model.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from safegraft.errors import InputError, Problem, output_errors
from safegraft_trainers.evaluate.example import Axis, Example, Picture, Scoring
from safegraft_trainers.evaluate.formats.format import Format

REQUIRED = ("id", "axis", "scoring", "prompt")
TEXTS = ("id", "prompt", "subset", "system", "image")
LISTS = ("references", "choices")
KEYS = {*REQUIRED, *TEXTS, *LISTS, "answer"}
CHOOSING = {Scoring.CHOICE, Scoring.STEREOTYPE}


def load(path_or_name: str) -> Sequence[Example]:
    """Read a file. Raises InputError with every problem in it."""
    path = Path(path_or_name).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(path_or_name, f"cannot be read: {error}; give a JSONL file")) from error
    problems: list[Problem] = []
    examples = [
        example
        for number, line in enumerate(lines, start=1)
        if line.strip() and (example := _example(line, path, f"{path_or_name}, line {number}", problems)) is not None
    ]
    twice = [name for name, count in Counter(one.id for one in examples).items() if count > 1]
    problems += [Problem(path_or_name, f"the id {name!r} stands for several examples") for name in twice]
    if problems:
        raise InputError(problems)
    return examples


def save(examples: Iterable[Example], path: Path) -> None:
    """Write examples to a file that `load` reads, and their images into a folder beside it. Raises OutputError."""
    images = path.with_name(f"{path.stem}-images")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(_row(one, images), ensure_ascii=False) for one in examples]
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        draft.write_text("\n".join([*lines, ""]), encoding="utf-8")
        os.replace(draft, path)


def _row(example: Example, images: Path) -> dict[str, Any]:
    row = {
        "id": example.id,
        "axis": str(example.axis),
        "scoring": str(example.scoring),
        "prompt": example.prompt,
        "subset": example.subset,
        "system": example.system,
        "references": list(example.references),
        "choices": list(example.choices),
        "answer": example.answer,
    }
    if example.image is not None:
        file = images / example.image.sha256[:32]  # pillow tells the kind from the content
        images.mkdir(exist_ok=True)
        file.write_bytes(example.image.content)
        row["image"] = f"{images.name}/{file.name}"
    return {key: value for key, value in row.items() if key in REQUIRED or value not in ("", [], None)}


def _example(line: str, path: Path, where: str, problems: list[Problem]) -> Example | None:
    """One line's example; None, and problems, when it is none."""
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        problems.append(Problem(where, f"is no JSON: {error}"))
        return None
    if not isinstance(row, dict):
        problems.append(Problem(where, "is no JSON object"))
        return None
    document = cast("dict[str, Any]", row)
    faults = list(_faults(document)) or list(_misfits(document))
    image = None
    if not faults and document.get("image"):
        try:
            image = Picture.read(path.parent / document["image"])
        except OSError as error:
            faults.append(f"the image {document['image']} cannot be read: {error.strerror or error}")
    if faults:
        problems += [Problem(where, fault) for fault in faults]
        return None
    return Example(
        id=document["id"],
        axis=Axis(document["axis"]),
        scoring=Scoring(document["scoring"]),
        prompt=document["prompt"],
        image=image,
        subset=document.get("subset", ""),
        system=document.get("system", ""),
        references=tuple(document.get("references", ())),
        choices=tuple(document.get("choices", ())),
        answer=document.get("answer"),
    )


def _faults(row: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong with a row, key by key."""
    yield from (f"has no {key!r}" for key in REQUIRED if key not in row)
    yield from (f"{key!r} is no key; keys are {', '.join(sorted(KEYS))}" for key in row if key not in KEYS)
    yield from (f"{key!r} has to be a text" for key in TEXTS if key in row and not isinstance(row[key], str))
    for key in LISTS:
        value = row.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):  # pyright: ignore[reportUnknownVariableType] (JSON)
            yield f"{key!r} has to be a list of texts"
    for key, kind in (("axis", Axis), ("scoring", Scoring)):
        if key in row and row[key] not in list(kind):
            yield f"{key!r} has to be one of {', '.join(kind)}"
    if "answer" in row and type(row["answer"]) is not int:
        yield "'answer' has to be an index into 'choices', a whole number"


def _misfits(row: Mapping[str, Any]) -> Iterable[str]:
    """What a row whose keys are right lacks for its scoring."""
    scoring, choices = Scoring(row["scoring"]), row.get("choices", [])
    if not row["id"]:
        yield "'id' is empty"
    if scoring == Scoring.EXACT and not row.get("references"):
        yield "'exact' needs 'references'"
    if scoring in CHOOSING and not (len(choices) >= 2 and 0 <= row.get("answer", -1) < len(choices)):
        yield f"{str(scoring)!r} needs two 'choices' or more, and 'answer', an index into them"
    if scoring == Scoring.LIKELIHOOD and len(choices) != 2:
        yield "'likelihood' needs two 'choices'"
    if scoring != Scoring.LIKELIHOOD and not row["prompt"].strip():
        yield "'prompt' is empty"


FORMATS = (Format("safegraft", None, load, None, ""),)
