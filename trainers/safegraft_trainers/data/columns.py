"""The columns that training reads and their types; the same rows for a model that sees no images.

Types are stated, never guessed: rows without an image (`images: []`) mix with rows that have some only then.
"""

# datasets and pyarrow type their functions in part, or not at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, Image, List, Value

from safegraft.errors import InputError, Problem

# An image part has the text "": some chat templates print a missing text as the word None.
MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
IMAGES = List(Image(mode="RGB"))  # decoded when a row is read; some image processors take nothing but RGB

SUPERVISED = Features({"id": Value("string"), "images": IMAGES, "prompt": MESSAGES, "completion": MESSAGES})
PREFERENCE = Features(
    {"id": Value("string"), "images": IMAGES, "prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}
)


def answers(dataset: Dataset) -> str:
    """The column that a model learns to say: "completion", or "chosen" of a preference.

    Raises InputError for a data set that no loader of this room made.
    """
    names = set(dataset.column_names)
    if {"prompt", "completion"} <= names:
        return "completion"
    if {"prompt", "chosen", "rejected"} <= names:
        return "chosen"
    have = ", ".join(sorted(names))
    message = f"has neither the columns prompt and completion nor prompt, chosen and rejected; it has {have}"
    raise InputError(Problem("data set", message))


def text_only(dataset: Dataset) -> Dataset:
    """The rows for a model that sees no images: no column `images`, and every message's content one string.

    Raises InputError when a row has an image.
    """
    spoken = [name for name in ("prompt", "completion", "chosen", "rejected") if name in dataset.column_names]
    if "images" in dataset.column_names:
        stored: Any = dataset.select_columns("images").with_format("arrow")  # images stay encoded
        pictured = sum(
            1 for batch in stored.iter(1024) for n in batch["images"].combine_chunks().value_lengths() if n.as_py()
        )
        if pictured:
            advice = "a model without vision cannot learn from them"
            raise InputError(Problem("data set", f"{pictured:,} of its rows have images; {advice}"))
        dataset = dataset.remove_columns("images")
    plain = List({"role": Value("string"), "content": Value("string")})
    features = Features({name: plain if name in spoken else kind for name, kind in dataset.features.items()})
    return dataset.map(_as_strings, fn_kwargs={"columns": spoken}, features=features)


def spoken_text(message: Mapping[str, Any]) -> str:
    """A message's text parts, a new line between them; "" for one that is but an image."""
    return "\n".join(part["text"] for part in message["content"] if part["type"] == "text")


def _as_strings(row: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    return {
        name: [{"role": message["role"], "content": spoken_text(message)} for message in row[name]] for name in columns
    }
