"""Leaves out of a data set what is unsafe: the paper's adaptation data was filtered to be safe (arXiv 2410.07571).

Four filters, each optional: keywords, a text classifier, an image classifier, a generative guard. Knows no model
itself (classifiers.py does) and no format.
"""

# datasets and pyarrow type their functions in part, or not at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from safegraft.errors import InputError, Problem, UsageError
from safegraft_trainers.data.classifiers import Conversation, Finding, Guard, ImageClassifier, TextClassifier
from safegraft_trainers.data.columns import IMAGES, answers, spoken_text

# Crude on purpose: words that are seldom harmless, so that the filter can always be on. It understands nothing: it
# misses whatever is put in other words, and takes out a history lesson. Use a classifier where it matters.
KEYWORDS = (
    "bestiality",
    "bioweapon",
    "bomb making",
    "build a bomb",
    "child porn",
    "child pornography",
    "cocaine",
    "commit suicide",
    "credit card fraud",
    "crystal meth",
    "cut myself",
    "ethnic cleansing",
    "fentanyl",
    "gang rape",
    "hentai",
    "heroin",
    "hitman",
    "how to kill",
    "human trafficking",
    "identity theft",
    "incest",
    "keylogger",
    "kill myself",
    "kill yourself",
    "make a bomb",
    "methamphetamine",
    "molotov cocktail",
    "money laundering",
    "nerve agent",
    "nude",
    "pedophile",
    "pipe bomb",
    "porn",
    "porno",
    "pornographic",
    "pornography",
    "ransomware",
    "rape",
    "raped",
    "self harm",
    "self-harm",
    "sex slave",
    "suicide bomber",
    "terrorist attack",
    "white supremacy",
)
ROWS_AT_ONCE = 128
SHOWN_IDS = 20

NOTHING: Finding = (0.0, "")
Find = Callable[[Sequence[Any]], list[Finding]]
Batch = Mapping[str, list[Any]]


@dataclass
class FilterReport:
    """What keep_safe did.

    rows_in, rows_out: their difference is the sum of `reasons`: a row counts for the first filter that finds it, in
    the order of `filters`, and there for what is found most. examples: ids of up to 20 rows for each reason.
    filters: each with its settings.
    """

    rows_in: int
    rows_out: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    filters: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For a model card or a JSON file."""
        return asdict(self)


def keep_safe(
    dataset: Dataset,
    text_classifier: str | None = None,
    image_classifier: str | None = None,
    keywords: Sequence[str] = KEYWORDS,
    *,
    guard: str | None = None,
    text_unsafe: Sequence[str] | None = None,
    image_unsafe: Sequence[str] | None = None,
    text_threshold: float = 0.5,
    image_threshold: float = 0.5,
    batch_size: int = 32,
    device: str = "cpu",
) -> tuple[Dataset, FilterReport]:
    """The rows that no filter finds unsafe, in their order, and what happened to the others.

    Looked at are all images, every message of the prompt, and the answer that is learnt (of a preference, the chosen
    one: the rejected one is unsafe by design). Each filter sees what the ones before it left.

    Args:
        text_classifier: a model for transformers' text-classification, by name or folder. Each message by itself.
        image_classifier: the same for image-classification.
        keywords: words and phrases, matched whole, whatever their case; () turns the filter off.
        guard: a generative guard such as meta-llama/Llama-Guard-3-8B: a folder, or a name in the local Hub cache.
        text_unsafe, image_unsafe: the labels that mean unsafe. Default: what well-known classifiers call it.
        text_threshold, image_threshold: from which score on, 0 to 1, a row is left out. Scores of labels that exclude
            each other are added, of independent ones the highest counts.

    Raises UsageError when there is no filter or a setting makes no sense, InputError when a model cannot be loaded, an
    image cannot be decoded, or no row is left.
    """
    for threshold in (text_threshold, image_threshold):
        if not 0 < threshold <= 1:
            raise UsageError(f"a threshold is above 0 and at most 1, not {threshold}")
    report = FilterReport(rows_in=len(dataset))
    sieve = _Sieve(dataset, report)
    if keywords:
        report.filters.append({"filter": "keyword", "keywords": len(keywords), "sha256": _sha256(keywords)})
        sieve.by_text("keyword", _keyword_finder(keywords), 1.0)
    if text_classifier is not None:
        model = TextClassifier(text_classifier, text_unsafe, batch_size=batch_size, device=device)
        report.filters.append(_settings("text", text_classifier, labels=model.labels, threshold=text_threshold))
        sieve.by_text("text", model, text_threshold)
    if guard is not None:
        judge = Guard(guard, batch_size=batch_size, device=device)
        report.filters.append(_settings("guard", guard))
        sieve.by_conversation("guard", judge)
    if image_classifier is not None:
        looker = ImageClassifier(image_classifier, image_unsafe, batch_size=batch_size, device=device)
        report.filters.append(_settings("image", image_classifier, labels=looker.labels, threshold=image_threshold))
        sieve.by_image("image", looker, image_threshold)
    if not report.filters:
        raise UsageError("no filter is given: name keywords, a classifier or a guard")
    return sieve.finished()


class _Sieve:
    """The rows that are left, and what is said of those that are not."""

    def __init__(self, dataset: Dataset, report: FilterReport) -> None:
        self._dataset = dataset
        self._report = report
        self._left = list(range(len(dataset)))
        self._spoken = ["prompt", answers(dataset)]

    def by_text(self, name: str, find: Find, threshold: float) -> None:
        """Every message by itself; one that comes again, as the prompts of a conversation do, is looked at once."""
        known: dict[str, Finding] = {}

        def look(batch: Batch) -> list[Finding]:
            said = [[text for _, text in row if text.strip()] for row in self._conversations(batch)]
            _look_up(known, {text: text for row in said for text in row}, find)
            return [max((known[text] for text in row), default=NOTHING) for row in said]

        self._keep(name, self._spoken, look, threshold)

    def by_conversation(self, name: str, find: Find) -> None:
        self._keep(name, self._spoken, lambda batch: find(self._conversations(batch)), 1.0)

    def by_image(self, name: str, find: Find, threshold: float) -> None:
        """Every image by itself; one that comes again is looked at once."""
        known: dict[str, Finding] = {}

        def look(batch: Batch) -> list[Finding]:
            named = [[(_image_key(image), image) for image in row or []] for row in batch["images"]]
            there = {key: image for row in named for key, image in row}
            _look_up(known, there, lambda images: find([_decoded(image) for image in images]))
            return [max((known[key] for key, _ in row), default=NOTHING) for row in named]

        if "images" in self._dataset.column_names:
            self._keep(name, ["images"], look, threshold)

    def finished(self) -> tuple[Dataset, FilterReport]:
        self._report.rows_out = len(self._left)
        if not self._left:
            counts = ", ".join(f"{reason} ({count:,})" for reason, count in self._report.reasons.items())
            message = f"no row of {self._report.rows_in:,} is left after filtering: {counts or 'there were none'}"
            raise InputError(Problem("data set", f"{message}; are the labels and thresholds right?"))
        return self._dataset.select(self._left), self._report

    def _keep(
        self, name: str, columns: Sequence[str], look: Callable[[Batch], list[Finding]], threshold: float
    ) -> None:
        stored: Any = self._dataset.select_columns(list(columns)).with_format("arrow")  # images stay encoded
        left: list[int] = []
        for first in tqdm(range(0, len(self._left), ROWS_AT_ONCE), desc=f"filtering by {name}", disable=None):
            rows = self._left[first : first + ROWS_AT_ONCE]
            for row, (score, found) in zip(rows, look(stored[rows].to_pydict()), strict=True):
                if score < threshold:
                    left.append(row)
                else:
                    self._count(f"{name}: {found}", row)
        self._left = left

    def _count(self, reason: str, row: int) -> None:
        self._report.reasons[reason] = self._report.reasons.get(reason, 0) + 1
        examples = self._report.examples.setdefault(reason, [])
        if len(examples) < SHOWN_IDS:
            examples.append(self._id(row))

    def _id(self, row: int) -> str:
        named = "id" in self._dataset.column_names
        return str(self._dataset.select_columns("id")[row]["id"]) if named else f"row {row + 1}"

    def _conversations(self, batch: Batch) -> list[Conversation]:
        before, after = (batch[column] for column in self._spoken)
        return [
            [(message["role"], spoken_text(message)) for message in (*asked, *answer)]
            for asked, answer in zip(before, after, strict=True)
        ]


def _settings(name: str, model: str, **more: Any) -> dict[str, Any]:
    """For the report, which may be published: of a model in a folder, the folder's name without the way to it."""
    return {"filter": name, "model": Path(model).name if Path(model).is_dir() else model, **more}


def _look_up(known: dict[str, Finding], wanted: Mapping[str, Any], find: Find) -> None:
    """Find what is not known yet, a bounded number at a time: images are decoded for it."""
    new = [key for key in wanted if key not in known]
    for first in range(0, len(new), ROWS_AT_ONCE):
        keys = new[first : first + ROWS_AT_ONCE]
        known.update(zip(keys, find([wanted[key] for key in keys]), strict=True))


def _keyword_finder(keywords: Sequence[str]) -> Find:
    """Words and phrases whole, whatever their case and the blanks between; the first one found is named."""
    spelt = [r"\s+".join(map(re.escape, keyword.split())) for keyword in keywords]
    if not all(spelt):
        raise UsageError("a keyword is empty, which every text would match")
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(spelt)})(?!\w)", re.IGNORECASE)

    def find(texts: Sequence[str]) -> list[Finding]:
        matches = [pattern.search(text) for text in texts]
        return [(1.0, " ".join(match[0].lower().split())) if match else NOTHING for match in matches]

    return find


def _image_key(image: Mapping[str, Any]) -> str:
    return hashlib.sha256(image["bytes"]).hexdigest() if image["bytes"] is not None else str(image["path"])


def _decoded(image: dict[str, Any]) -> Any:
    try:
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        return IMAGES.feature.decode_example({"bytes": content, "path": None})
    except (OSError, ValueError, SyntaxError) as error:  # pillow's own, and what broken files make it say
        where = image["path"] or "a stored image"
        raise InputError(Problem(where, f"cannot be decoded: {error}: replace it or take its row out")) from error


def _sha256(keywords: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keywords).encode()).hexdigest()
