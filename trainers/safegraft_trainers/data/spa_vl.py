"""SPA-VL (arXiv 2406.12030): a picture, a question, a safer and a less safe answer.

{"image": a path, bytes or {bytes, path}, "question": ..., "chosen": ..., "rejected": ...}
"""

# datasets comes with no stubs, and types itself in part.
# pyright: reportMissingTypeStubs=false

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from safegraft_trainers.data.columns import PREFERENCE
from safegraft_trainers.data.conversations import row_id
from safegraft_trainers.data.messages import answered, asked, text
from safegraft_trainers.data.reading import read
from safegraft_trainers.data.sources import IMAGE_COLUMNS, Reference, Row


def load_spa_vl(
    source: Reference,
    image_folder: str | Path | None = None,
    *,
    verify: bool = True,
    skip_faulty: bool = False,
) -> Dataset:
    """Preferences as columns id, images, prompt, chosen, rejected; a row without an image is text.

    Arguments and errors as for `load_llava`. Other columns (which model gave an answer, classes) are not looked at.
    """
    return read(source, image_folder, _convert, PREFERENCE, verify=verify, skip_faulty=skip_faulty)


def _convert(row: Row, number: int, images: Callable[[Any], list[int]]) -> list[dict[str, Any]]:
    pictures = [image for column in IMAGE_COLUMNS for image in images(row.get(column))]
    return [
        {
            "id": row_id(row, number),
            "images": pictures,
            "prompt": asked(text(row.get("question"), "`question`"), len(pictures), "`question`"),
            "chosen": answered(text(row.get("chosen"), "`chosen`"), "`chosen`"),
            "rejected": answered(text(row.get("rejected"), "`rejected`"), "`rejected`"),
        }
    ]
