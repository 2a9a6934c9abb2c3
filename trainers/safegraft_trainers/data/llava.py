"""Pictures and talk: LLaVA's JSON as in LLaVA-1.5's mix665k (arXiv 2310.03744), and Hugging Face's messages + images.

LLaVA's rows: {"id", "image": a path or several, "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}.
Hugging Face's: {"images": [...], "messages": [{"role": "user", "content": ...}, ...]}, as TRL reads them; also TRL's
prompt and completion. Rows without an image are text. Other columns are not looked at.
"""

# datasets comes with no stubs, and types itself in part.
# pyright: reportMissingTypeStubs=false

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from safegraft_trainers.data.columns import SUPERVISED
from safegraft_trainers.data.conversations import supervised_rows
from safegraft_trainers.data.messages import Turns
from safegraft_trainers.data.reading import read
from safegraft_trainers.data.sources import IMAGE_COLUMNS, Reference, Row


def load_llava(
    source: Reference,
    image_folder: str | Path | None = None,
    *,
    turns: Turns = "every",
    verify: bool = True,
    skip_faulty: bool = False,
) -> Dataset:
    """Conversations about images, and without, as columns id, images, prompt, completion.

    Args:
        source: a JSON, JSONL or parquet file, a folder saved by `datasets`, a Hub data set `org/name[:split]`, or a
            Dataset.
        image_folder: what image paths are relative to and must lie in. Default: the file's folder.
        turns: "every" makes each of a conversation's answers a row of its own, after all that was said before: TRL
            counts the completion's tokens alone, and the loss is then that of LLaVA, which counts every answer. "last"
            makes one row with the last answer.
        verify: read every image's header, so that a broken file is found before training.
        skip_faulty: leave out rows that cannot be used, with a warning that counts them, instead of refusing all.

    Raises InputError with all faults found: missing and broken images, empty texts, unknown roles, images and places
    (<image>) that are not as many, turns out of order.
    """

    def convert(row: Row, number: int, images: Callable[[Any], list[int]]) -> list[dict[str, Any]]:
        pictures = [image for column in IMAGE_COLUMNS for image in images(row.get(column))]
        return supervised_rows(row, number, pictures, turns)

    return read(source, image_folder, convert, SUPERVISED, verify=verify, skip_faulty=skip_faulty)
