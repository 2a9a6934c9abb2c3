"""Text alone: refusals, harmless look-alikes of harmful prompts, replayed benign chat.

A row is prompt/response (or prompt/completion), instruction/output with Alpaca's optional `input`, `messages` with role
and content, or `conversations` with from and value.
"""

# datasets comes with no stubs, and types itself in part.
# pyright: reportMissingTypeStubs=false

from collections.abc import Callable
from typing import Any

from datasets import Dataset

from safegraft_trainers.data.columns import SUPERVISED
from safegraft_trainers.data.conversations import supervised_rows
from safegraft_trainers.data.faults import Unusable
from safegraft_trainers.data.messages import Turns
from safegraft_trainers.data.reading import read
from safegraft_trainers.data.sources import IMAGE_COLUMNS, Reference, Row


def load_chat(source: Reference, *, turns: Turns = "every", skip_faulty: bool = False) -> Dataset:
    """Chat as columns id, images (empty, so that it mixes with rows that have some), prompt, completion.

    Arguments and errors as for `load_llava`; a row with an image is a fault. For a model without vision, hand the
    result to `columns.text_only`.
    """

    def convert(row: Row, number: int, images: Callable[[Any], list[int]]) -> list[dict[str, Any]]:
        if any(row.get(column) not in (None, "", []) for column in IMAGE_COLUMNS):
            raise Unusable("has an image, and this is a source of text: load it as LLaVA data")
        return supervised_rows(row, number, [], turns)

    return read(source, None, convert, SUPERVISED, verify=False, skip_faulty=skip_faulty)
