"""Rows that hold a conversation in one of the ways people write one, as rows of prompt and completion.

Shared by llava.py and text_chat.py. Knows no files.
"""

from collections.abc import Sequence
from typing import Any

from safegraft.checkpoint.strict_json import as_list
from safegraft_trainers.data.faults import Unusable
from safegraft_trainers.data.messages import (
    Exchange,
    Turns,
    answered,
    asked,
    chat_turns,
    exchanges,
    kind,
    llava_turns,
    placed,
    text,
)
from safegraft_trainers.data.sources import Row

PAIRS = (("prompt", "response"), ("prompt", "completion"), ("instruction", "output"))
KNOWN = "`conversations`, `messages`, `prompt` and `response` (or `completion`), `instruction` and `output`"


def supervised_rows(row: Row, number: int, images: Sequence[int], turns: Turns) -> list[dict[str, Any]]:
    """The row's answers, each with what was said and shown before it. Raises Unusable."""
    found = _exchanges(row, len(images), turns)
    name = row_id(row, number)
    return [
        {
            "id": name if len(found) == 1 else f"{name}/{one.turn}",
            "images": list(images[: one.images]),
            "prompt": one.prompt,
            "completion": one.completion,
        }
        for one in found
    ]


def row_id(row: Row, number: int) -> str:
    """The row's own `id`, else its number in the source."""
    own = row.get("id")
    return str(own) if isinstance(own, str | int) and not isinstance(own, bool) and own != "" else str(number)


def _exchanges(row: Row, images: int, turns: Turns) -> list[Exchange]:
    if row.get("conversations") is not None:
        return list(exchanges(placed(llava_turns(row["conversations"]), images), turns))
    if row.get("messages") is not None:
        return list(exchanges(placed(chat_turns(row["messages"]), images), turns))
    for question, answer in PAIRS:
        if row.get(question) is not None and answer in row:
            return [_pair(row, question, answer, images)]
    have = ", ".join(sorted(name for name, value in row.items() if value is not None)) or "nothing"
    raise Unusable(f"has no conversation: one of {KNOWN} is needed; it has {have}")


def _pair(row: Row, question: str, answer: str, images: int) -> Exchange:
    """Two texts; or two lists of messages, as TRL's and our own data sets hold them."""
    before, after = as_list(row[question]), as_list(row[answer])
    if before is not None and after is not None:
        return _message_pair(before, after, f"`{question}` and `{answer}`", images)
    if before is not None or after is not None:
        texts, lists = (answer, question) if after is None else (question, answer)
        raise Unusable(f"`{texts}` is {kind(row[texts])} and `{lists}` a list of messages: they must be alike")
    said = text(row[question], f"`{question}`")
    context = row.get("input") if question == "instruction" else None  # Alpaca's; "" in most of its rows
    if context not in (None, ""):
        said = f"{said}\n\n{text(context, '`input`')}"
    return Exchange(1, asked(said, images, f"`{question}`"), answered(row[answer], f"`{answer}`"), images)


def _message_pair(before: list[Any], after: list[Any], what: str, images: int) -> Exchange:
    if len(after) != 1:
        raise Unusable(f"{what}: the answer holds {len(after)} messages; it must hold the assistant's one")
    whole = placed(chat_turns([*before, *after], what), images)
    return Exchange(1, whole[:-1], whole[-1:], images)
