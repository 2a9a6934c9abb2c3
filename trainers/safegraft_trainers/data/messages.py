"""A conversation as messages with content parts, checked, and cut into what is given and what is learnt.

Knows no files. Every fault of a row is an Unusable that says what to do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from safegraft.checkpoint.findings import listed, shown
from safegraft.checkpoint.strict_json import as_list, as_object
from safegraft_trainers.data.faults import Unusable

IMAGE = "<image>"  # LLaVA's data says with it where an image goes
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"

LLAVA_ROLES = {"human": USER, "user": USER, "gpt": ASSISTANT, "assistant": ASSISTANT, "system": SYSTEM}
CHAT_ROLES = {USER: USER, ASSISTANT: ASSISTANT, SYSTEM: SYSTEM}

Turns = Literal["every", "last"]
Part = dict[str, str]  # {"type": "image" or "text", "text": ...}
Message = dict[str, Any]  # {"role": ..., "content": [Part, ...]}


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is given and what is learnt. turn: the answer's number in its conversation, from 1. images: seen so far."""

    turn: int
    prompt: list[Message]
    completion: list[Message]
    images: int


def text(value: Any, what: str) -> str:
    """The value, which must be a text that says something. Raises Unusable."""
    if not isinstance(value, str):
        raise Unusable(f"{what} is {kind(value)}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unusable(f"{what} holds half a surrogate pair, which is no character: replace it") from None
    if not value.strip():
        raise Unusable(f"{what} is empty: fill it in or take the row out")
    return value


def kind(value: Any) -> str:
    """A value's JSON type, in words."""
    names = {"NoneType": "missing", "list": "a list", "dict": "an object", "bool": "true or false", "str": "a text"}
    return names.get(type(value).__name__, "a number" if isinstance(value, int | float) else type(value).__name__)


def asked(question: Any, images: int, what: str) -> list[Message]:
    """A prompt of one message; the images stand where the question says <image>, else before it."""
    return placed([_message(USER, question, what)], images)


def answered(answer: Any, what: str) -> list[Message]:
    """A completion of one message."""
    message = _message(ASSISTANT, answer, what)
    _refuse_images([message])
    return [message]


def llava_turns(value: Any) -> list[Message]:
    """From LLaVA's [{"from": "human" or "gpt", "value": ...}, ...]."""
    return _turns(value, "conversations", "from", "value", LLAVA_ROLES)


def chat_turns(value: Any, what: str = "messages") -> list[Message]:
    """From Hugging Face's [{"role": ..., "content": a text or a list of parts}, ...]."""
    return _turns(value, what, "role", "content", CHAT_ROLES)


def placed(messages: Sequence[Message], images: int) -> list[Message]:
    """The conversation with an image part for each of its `images`.

    One that names no place for its images has them before the first thing the user says, as in TRL.
    """
    found = _image_count(messages)
    if found == images:
        return list(messages)
    if found == 0:
        first = next(number for number, message in enumerate(messages) if message["role"] == USER)
        shown_first: list[Part] = [{"type": "image", "text": ""} for _ in range(images)]
        opening = {"role": USER, "content": [*shown_first, *messages[first]["content"]]}
        return [*messages[:first], opening, *messages[first + 1 :]]
    has = f"{images} image{'' if images == 1 else 's'}" if images else "no image"
    raise Unusable(f"names a place ({IMAGE}) for {found} and has {has}: they must be as many")


def exchanges(messages: Sequence[Message], turns: Turns) -> Iterator[Exchange]:
    """The conversation's answers with all that was said before: every one, or the last alone."""
    ends = [number for number, message in enumerate(messages) if message["role"] == ASSISTANT]
    for turn, end in enumerate(ends, 1):
        if turns == "every" or end == ends[-1]:
            before = list(messages[:end])
            yield Exchange(turn, before, [messages[end]], _image_count(before))


def _check_order(messages: Sequence[Message], what: str) -> None:
    """An optional system message, then user and assistant in turn, the assistant last. Raises Unusable."""
    roles = [message["role"] for message in messages]
    if roles[0] == SYSTEM:
        roles = roles[1:]
    if not roles:
        raise Unusable(f"{what} holds a system message alone")
    if roles[0] == ASSISTANT:
        raise Unusable(f"{what} starts with the assistant: put the user's message before it, or take that turn out")
    for before, role in pairwise(roles):
        if role == SYSTEM:
            raise Unusable(f"{what} has a system message in the middle; it may only come first")
        if role == before:
            raise Unusable(f"{what} has two {role} messages in a row: join them")
    if roles[-1] == USER:
        raise Unusable(f"{what} ends with the user: add the assistant's answer, or take that turn out")


def _turns(value: Any, what: str, role_key: str, text_key: str, roles: Mapping[str, str]) -> list[Message]:
    entries = as_list(value)
    if not entries:
        raise Unusable(f"{what} is {'empty' if entries == [] else kind(value)}; it must be a list of messages")
    messages: list[Message] = []
    for number, entry in enumerate(entries, 1):
        turn = as_object(entry)
        where = f"{what}, message {number},"
        if turn is None:
            raise Unusable(f'{where} is {kind(entry)}; it must be {{"{role_key}": ..., "{text_key}": ...}}')
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in roles:
            said = shown(role) if isinstance(role, str) else kind(role)
            raise Unusable(f"{where} has the unknown role {said} (`{role_key}`); known: {listed(roles, most=9)}")
        messages.append(_message(roles[role], turn.get(text_key), f"{where} its `{text_key}`"))
    _check_order(messages, what)
    _refuse_images([message for message in messages if message["role"] != USER])
    return messages


def _message(role: str, content: Any, what: str) -> Message:
    parts = as_list(content)
    if parts is not None:
        return {"role": role, "content": [_part(part, what) for part in _not_empty(parts, what)]}
    return {"role": role, "content": _split(text(content, what))}


def _not_empty(parts: list[Any], what: str) -> list[Any]:
    if not parts:
        raise Unusable(f"{what} is empty: fill it in or take the row out")
    return parts


def _part(value: Any, what: str) -> Part:
    part = as_object(value) or {}
    match part.get("type"):
        case "text":
            return {"type": "text", "text": text(part.get("text"), f"{what}, a text part,")}
        case "image":
            if any(part.get(key) is not None for key in ("image", "url", "path")):
                raise Unusable(f"{what} holds an image itself: put it in the column `images`, and leave a bare part")
            return {"type": "image", "text": ""}
        case other:
            raise Unusable(f"{what} has a part of type {shown(str(other))}; known: 'text', 'image'")


def _split(said: str) -> list[Part]:
    """<image> becomes a part where it stands; blanks around it go, as they only set it off from the text."""
    if IMAGE not in said:
        return [{"type": "text", "text": said}]
    parts: list[Part] = []
    for number, piece in enumerate(said.split(IMAGE)):
        if number:
            parts.append({"type": "image", "text": ""})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def _image_count(messages: Sequence[Message]) -> int:
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def _refuse_images(messages: Sequence[Message]) -> None:
    for message in messages:
        if _image_count([message]):
            raise Unusable(f"the {message['role']} says {IMAGE}; only the user shows images: take the word out")
