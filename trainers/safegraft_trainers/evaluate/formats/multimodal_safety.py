"""Harmful requests with an image: MM-SafetyBench, SIUO, VLSafe, VLGuard, SPA-VL. (FigStep: figstep.py.)"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

from safegraft.errors import InputError, Problem
from safegraft_trainers.evaluate.example import Axis, Example, Scoring
from safegraft_trainers.evaluate.formats.format import Format, multiple_choice
from safegraft_trainers.evaluate.formats.rows import Row, attack, content_ids, gather, harmless
from safegraft_trainers.evaluate.reading import RawRow, read_rows, root_of

# What the paper asks beside each kind of image: the typographic ones say in pixels what the text leaves out.
MM_SAFETYBENCH_QUESTIONS = {
    "SD": "Rephrased Question(SD)",
    "SD_TYPO": "Rephrased Question",
    "TYPO": "Rephrased Question",
}


def load_mm_safetybench(kind: str, source: str) -> Sequence[Example]:
    """The repository's folder (`processed_questions/NN-NAME.json`, `imgs/NN-NAME/KIND/ID.jpg`), or the Hub's copy.

    kind: SD, SD_TYPO or TYPO. Subsets: the scenarios.
    """
    root = root_of(source)
    root = next((root / name for name in ("data", ".") if (root / name / "processed_questions").is_dir()), root)
    files = sorted((root / "processed_questions").glob("*.json"))
    if files:
        raw = [row for file in files for row in _in_scenario(file.stem, read_rows(str(file)))]
        return gather(raw, partial(_mm_safetybench, kind))
    files = sorted(root.glob(f"data/*/{kind}*.parquet"))
    if files:
        raw = [row for file in files for row in _in_scenario(file.parent.name, read_rows(str(file)))]
        return gather(raw, _mm_safetybench_of_the_hub)
    message = f"has neither processed_questions/*.json nor data/SCENARIO/{kind}*.parquet; name the benchmark's folder"
    raise InputError(Problem(source, message))


def _in_scenario(scenario: str, rows: Iterable[RawRow]) -> list[RawRow]:
    return [RawRow(row.where, {"scenario": scenario, **row.values}, row.folder.parent, row.key) for row in rows]


def _mm_safetybench(kind: str, row: Row) -> Iterable[Example]:
    scenario = row.text("scenario")
    column = MM_SAFETYBENCH_QUESTIONS[kind]
    image = row.picture_of(column, f"imgs/{scenario}/{kind}/{row.key}.jpg")
    yield attack(f"{scenario}/{row.key}", row.text(column), image=image, subset=scenario)


def _mm_safetybench_of_the_hub(row: Row) -> Iterable[Example]:
    scenario = row.text("scenario")
    identity = f"{scenario}/{row.text('id')}"
    yield attack(identity, row.text("question"), image=row.picture("image"), subset=scenario)


def load_siuo(source: str) -> Sequence[Example]:
    """`siuo_gen.json` beside its `images` folder. Subsets: the categories."""
    return gather(read_rows(source), _siuo)


def _siuo(row: Row) -> Iterable[Example]:
    image = row.picture("image", "images")
    yield attack(row.text("question_id"), row.text("question"), image=image, subset=row.text("category"))


def load_siuo_choices(source: str) -> Sequence[Example]:
    """`siuo_mcqa.json`: whether the safe one of four answers is picked. An accuracy, so higher is better here."""
    return gather(read_rows(source), _siuo_choices)


def _siuo_choices(row: Row) -> Iterable[Example]:
    options = row.record("options")
    letters = sorted(options)
    if options and (
        letters != list("ABCD")[: len(letters)] or not all(isinstance(options[one], str) for one in letters)
    ):
        row.fault("options", f"must have texts under A, B, ...; it has {', '.join(letters)}")
        return
    choices = tuple(str(options[letter]).strip() for letter in letters)
    question = row.text("question")
    yield Example(
        row.text("question_id"),
        Axis.HELPFULNESS,
        Scoring.CHOICE,
        multiple_choice(question, choices),
        row.picture("image", "images"),
        row.text("category"),
        choices=choices,
        answer=row.letter("correct_option", len(choices)),
    )


def load_vlsafe(source: str) -> Sequence[Example]:
    """JSONL of harmful questions on harmless COCO photos; the photos lie beside it, or in a folder below it."""
    return content_ids(gather(read_rows(source), _vlsafe))


def _vlsafe(row: Row) -> Iterable[Example]:
    image = row.picture(row.named("image", "image_id"), "images", "train2017", "train2014", "val2014")
    yield attack("", row.text(row.named("query", "question")), image=image)


def load_vlguard(source: str) -> Sequence[Example]:
    """`test.json` beside the unpacked `test` folder. Subsets, as its paper's evaluation names them:

    unsafes: an unsafe image. safe_unsafes: an unsafe request about a safe one. safe_safes: a safe request about a safe
    one, which measures exaggerated safety.
    """
    return gather(read_rows(source), _vlguard)


def _vlguard(row: Row) -> Iterable[Example]:
    identity, safe = row.text("id"), row.flag("safe")
    image = row.picture("image", "test", "VLGuard/test")
    asked = _instructions(row)
    if safe is None or row.faults:
        return
    wanted: dict[str, tuple[str, Callable[..., Example]]] = {"instruction": ("unsafes", attack)}
    if safe:
        wanted = {"safe_instruction": ("safe_safes", harmless), "unsafe_instruction": ("safe_unsafes", attack)}
    for name, (subset, build) in wanted.items():
        if not asked.get(name, "").strip():
            row.fault("instr-resp", f"a {'safe' if safe else 'harmful'} image needs {name!r}")
            continue
        yield build(f"{identity}/{subset}", asked[name].strip(), image=image, subset=subset)


def _instructions(row: Row) -> dict[str, str]:
    """The instructions of `instr-resp`, a list of objects of which each has one, by their names."""
    pairs: Any = row.value("instr-resp")
    if not isinstance(pairs, list) or not all(isinstance(one, dict) for one in cast("list[Any]", pairs)):
        row.fault("instr-resp", "must be a list of objects with an instruction and a response")
        return {}
    every = [item for one in cast("list[dict[str, Any]]", pairs) for item in one.items()]
    return {name: text for name, text in every if name.endswith("instruction") and isinstance(text, str)}


def load_spa_vl(source: str) -> Sequence[Example]:
    """The test split `harm`. Subsets: `class1` where the file has it."""
    return content_ids(gather(read_rows(source), _spa_vl))


def _spa_vl(row: Row) -> Iterable[Example]:
    yield attack("", row.text("question"), image=row.picture("image"), subset=row.optional("class1"))


def _mm_safetybench_format(name: str, kind: str) -> Format:
    return Format(
        name,
        Axis.MULTIMODAL_SAFETY,
        partial(load_mm_safetybench, kind),
        "PKU-Alignment/MM-SafetyBench",
        "https://arxiv.org/abs/2311.17600",
    )


FORMATS = (
    _mm_safetybench_format("mm-safetybench", "SD_TYPO"),
    _mm_safetybench_format("mm-safetybench-sd", "SD"),
    _mm_safetybench_format("mm-safetybench-typo", "TYPO"),
    Format(
        "siuo",
        Axis.MULTIMODAL_SAFETY,
        load_siuo,
        "sinwang/SIUO:**/siuo_gen.json",
        "https://arxiv.org/abs/2406.15279",
    ),
    Format(
        "siuo-mcqa",
        Axis.HELPFULNESS,
        load_siuo_choices,
        "sinwang/SIUO:**/siuo_mcqa.json",
        "https://arxiv.org/abs/2406.15279",
    ),
    Format("vlsafe", Axis.MULTIMODAL_SAFETY, load_vlsafe, None, "https://arxiv.org/abs/2311.10081"),
    Format("vlguard", None, load_vlguard, "ys-zong/VLGuard:test.json", "https://arxiv.org/abs/2402.02207"),
    Format(
        "spa-vl",
        Axis.MULTIMODAL_SAFETY,
        load_spa_vl,
        "sqrti/SPA-VL:test/harm*.parquet",
        "https://arxiv.org/abs/2406.12030",
    ),
)
