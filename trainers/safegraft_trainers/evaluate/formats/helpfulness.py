"""What a vision-language model can do: MMBench, MME, SEED-Bench, MMMU."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from safegraft.errors import InputError, Problem
from safegraft_trainers.evaluate.example import Axis, Example, Scoring
from safegraft_trainers.evaluate.formats.format import Format, multiple_choice
from safegraft_trainers.evaluate.formats.rows import Row, gather
from safegraft_trainers.evaluate.grouped import OneOfSeveral
from safegraft_trainers.evaluate.reading import RawRow, locate, read_rows

YES_NO = ("Yes", "No")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SEED_BENCH_DIMENSIONS = {
    "1": "Scene Understanding",
    "2": "Instance Identity",
    "3": "Instance Attributes",
    "4": "Instance Location",
    "5": "Instance Counting",
    "6": "Spatial Relation",
    "7": "Instance Interaction",
    "8": "Visual Reasoning",
    "9": "Text Recognition",
}


# MMBench


def load_mmbench(source: str) -> Sequence[Example]:
    """A TSV with images in base64, or the Hub's parquet. Subsets: the categories."""
    raw = read_rows(source)
    return gather(_with_images(raw), _mmbench)


def load_mmbench_circular(source: str) -> Sequence[Example]:
    """Every question as often as it has options, these moved on by one each time: "circular" evaluation.

    The paper counts a question only when it is answered right each time (grouped.py).
    """
    return [turned for example in load_mmbench(source) for turned in _turns(example)]


def _with_images(rows: Sequence[RawRow]) -> list[RawRow]:
    """VLMEvalKit's files write an image once; other rows of the same image hold that row's index in its place."""
    images = {str(row.values.get("index")): row.values.get("image") for row in rows}
    filled: list[RawRow] = []
    for row in rows:
        image = row.values.get("image")
        if isinstance(image, str) and len(image) < 64 and image in images:
            row = replace(row, values={**row.values, "image": images[image]})
        filled.append(row)
    return filled


def _mmbench(row: Row) -> Iterable[Example]:
    letters = [letter for letter in "ABCD" if row.has(letter)]
    if letters != list("ABCD")[: len(letters)] or len(letters) < 2:
        row.fault("A", f"needs at least two options, without gaps; it has {', '.join(letters) or 'none'}")
    if not row.has("answer"):
        row.fault("answer", "is empty: the test split's answers are not public; take the dev file")
        return
    choices = tuple(row.text(letter) for letter in letters)
    question = "\n".join(filter(None, [row.optional("hint"), row.text("question")]))
    yield Example(
        row.text("index"),
        Axis.HELPFULNESS,
        Scoring.CHOICE,
        multiple_choice(question, choices),
        row.picture("image"),
        row.optional("category"),
        choices=choices,
        answer=row.letter("answer", len(choices)),
    )


def _turns(example: Example) -> Iterable[Example]:
    question = example.prompt.removesuffix(multiple_choice("", example.choices))
    answer = 0 if example.answer is None else example.answer
    size = len(example.choices)
    for turn in range(size):
        choices = example.choices[turn:] + example.choices[:turn]
        yield OneOfSeveral(
            f"{example.id}/{turn}",
            example.axis,
            example.scoring,
            multiple_choice(question, choices),
            example.image,
            example.subset,
            choices=choices,
            answer=(answer - turn) % size,
            measure="circular",
            group=example.id,
            size=size,
        )


# MME


def load_mme(source: str) -> Sequence[Example]:
    """The released folder (a folder a task) or the Hub's parquet. Subsets: the tasks.

    Each image has two questions, one answered Yes, one No; ids end in /yes and /no (grouped.py).
    """
    (root, *others) = locate(source)
    if not others and root.is_dir() and (texts := _mme_texts(root)):
        return gather([row for text in texts for row in _mme_lines(root, text)], _mme)
    return gather(read_rows(source), _mme)


def _mme_texts(root: Path) -> list[Path]:
    """Two layouts: TASK/ID.txt beside its image, or TASK/questions_answers_YN/ID.txt with TASK/images."""
    return sorted([*root.glob("*/*.txt"), *root.glob("*/questions_answers_YN/*.txt")])


def _mme_lines(root: Path, text: Path) -> Iterable[RawRow]:
    task = text.relative_to(root).parts[0]
    images = text.parent.parent / "images" if text.parent.name == "questions_answers_YN" else text.parent
    shown = next(
        (images / f"{text.stem}{end}" for end in IMAGE_SUFFIXES if (images / f"{text.stem}{end}").is_file()), None
    )
    name = str(text.relative_to(root))
    try:
        lines = text.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(name, f"cannot be read: {error}")) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            question, _, answer = line.rstrip().rpartition("\t")
            values = {"question_id": f"{task}/{text.stem}", "category": task, "question": question, "answer": answer}
            # A missing image is reported under the name it should have.
            values["image"] = str(shown or images / f"{text.stem}{IMAGE_SUFFIXES[0]}")
            yield RawRow(f"{name}, line {number}", values, images)


def _mme(row: Row) -> Iterable[Example]:
    answer = row.one_of("answer", YES_NO)
    image = row.text("question_id")
    yield OneOfSeveral(
        f"{image}/{answer.lower()}",
        Axis.HELPFULNESS,
        Scoring.CHOICE,
        row.text("question"),
        row.picture("image"),
        row.text("category"),
        choices=YES_NO,
        answer=YES_NO.index(answer) if answer else None,
        measure="accuracy_plus",
        group=image,
        size=len(YES_NO),
    )


# SEED-Bench


def load_seed_bench(source: str) -> Sequence[Example]:
    """`SEED-Bench.json` beside its image folder, or the Hub's parquet. Questions on videos are left out.

    Subsets: the dimensions 1 to 9.
    """
    inside = "questions" if source.lower().endswith(".json") else None
    return gather(read_rows(source, inside=inside), _seed_bench)


def _seed_bench(row: Row) -> Iterable[Example]:
    dimension = row.text("question_type_id").removesuffix(".0")
    if row.one_of("data_type", ("image", "video")) == "video":
        return row.leave_out("they are about videos")
    if dimension not in SEED_BENCH_DIMENSIONS:
        row.fault("question_type_id", f"must be 1 to 9 for an image, not {dimension!r}")
    choices = tuple(row.text(f"choice_{letter}") for letter in "abcd")
    image = row.picture("image") if row.has("image") else row.picture("data_id", "SEED-Bench-image", "images")
    example = Example(
        row.text("question_id"),
        Axis.HELPFULNESS,
        Scoring.CHOICE,
        multiple_choice(row.text("question"), choices),
        image,
        SEED_BENCH_DIMENSIONS.get(dimension, ""),
        choices=choices,
        answer=row.letter("answer", len(choices)),
    )
    return (example,)


# MMMU


def load_mmmu(source: str) -> Sequence[Example]:
    """The Hub's parquet files, or rows of their layout. Subsets: the subjects, out of the ids.

    Questions with several images are left out: an example shows one.
    """
    return gather(read_rows(source), _mmmu)


def _mmmu(row: Row) -> Iterable[Example]:
    question = row.text("question")
    choices = row.strings("options") if row.has("options") else ()
    shown = sorted(set(re.findall(r"<image (\d)>", "\n".join([question, *choices])))) or ["1"]
    if len(shown) > 1:
        return row.leave_out("they show several images")
    if not row.has("answer") or row.value("answer") == "?":
        row.fault("answer", "is hidden in the test split; take the validation files")
        return ()
    identity = row.text("id")
    image = row.picture(f"image_{shown[0]}")
    subject = re.sub(r"\A[a-z]+_(.+)_\d+\Z", r"\1", identity)
    if row.one_of("question_type", ("multiple-choice", "open")) == "open":
        prompt = f"{question}\nAnswer with a single word, number or phrase."
        references = _references(row)
        return (Example(identity, Axis.HELPFULNESS, Scoring.EXACT, prompt, image, subject, references=references),)
    prompt = multiple_choice(question, choices)
    answer = row.letter("answer", len(choices))
    chosen = Example(identity, Axis.HELPFULNESS, Scoring.CHOICE, prompt, image, subject, choices=choices, answer=answer)
    return (chosen,)


def _references(row: Row) -> tuple[str, ...]:
    """One answer, or a list of them written out."""
    answer = row.text("answer")
    return row.strings("answer") if answer.startswith("[") and answer.endswith("]") else (answer,)


FORMATS = (
    Format(
        "mmbench",
        Axis.HELPFULNESS,
        load_mmbench,
        "lmms-lab/MMBench:en/dev-*.parquet",
        "https://arxiv.org/abs/2307.06281",
    ),
    Format(
        "mmbench-circular",
        Axis.HELPFULNESS,
        load_mmbench_circular,
        "lmms-lab/MMBench:en/dev-*.parquet",
        "https://arxiv.org/abs/2307.06281",
    ),
    Format("mme", Axis.HELPFULNESS, load_mme, "lmms-lab/MME", "https://arxiv.org/abs/2306.13394"),
    Format("seed-bench", Axis.HELPFULNESS, load_seed_bench, "lmms-lab/SEED-Bench", "https://arxiv.org/abs/2307.16125"),
    Format("mmmu", Axis.HELPFULNESS, load_mmmu, "MMMU/MMMU:*/validation-*.parquet", "https://arxiv.org/abs/2311.16502"),
)
