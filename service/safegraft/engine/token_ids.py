"""Tokens that configs name by their row: where a new vocabulary moves them, the new row is written."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from safegraft.checkpoint.findings import shown
from safegraft.checkpoint.strict_json import as_list, as_object, is_natural

_NAMES_A_TOKEN = re.compile(r".*_token_(id|index|ids)")
# What a model can do without; others, such as an image's, say where to put what.
_DISPENSABLE = re.compile(r"(forced_)?(bos|eos|pad|sep|unk|cls|mask|decoder_start)_token_id")
_OTHER_VOCABULARIES = ("vision_config", "audio_config")


class TokenIds:
    """Moves the rows that a model's configs name from its own vocabulary into another one.

    Args:
        own: token -> row, as the configs mean it.
        new: token -> row, as they are to mean it.

    problems: keys whose token the new vocabulary has not, and without which the model does not work.
    notes: keys that were emptied.
    """

    def __init__(self, own: Mapping[str, int], new: Mapping[str, int]) -> None:
        self._tokens = {row: token for token, row in own.items()}
        self._new = new
        self.problems: list[str] = []
        self.notes: list[str] = []

    def moved(self, config: Mapping[str, Any], file: str) -> dict[str, Any]:
        """A copy of a config with the new rows. `file`: what messages call it."""
        copy: dict[str, Any] = json.loads(json.dumps(config))
        for place in _places(copy):
            for key, value in place.items():
                if _NAMES_A_TOKEN.fullmatch(key):
                    place[key] = self._moved(value, key, file)
        return copy

    def _moved(self, value: Any, key: str, file: str) -> Any:
        rows = as_list(value)
        if rows is not None:
            found = [self._row(row, key, file) for row in rows]
            return [row for row in found if row is not None]
        return self._row(value, key, file) if is_natural(value) else value

    def _row(self, row: Any, key: str, file: str) -> Any:
        if not is_natural(row):
            return row
        token = self._tokens.get(row)
        if token is not None and token in self._new:
            return self._new[token]
        what = f"row {row}, {'which is no token of its own' if token is None else shown(token)}"
        if _DISPENSABLE.fullmatch(key):
            self.notes.append(f"{file}: {key} is {what}; the new vocabulary has no such token, so it is taken out")
            return None
        self.problems.append(
            f"{file}: {key} is {what}, and the new vocabulary has no such token, which the model cannot do without"
        )
        return row


def _places(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config and the configs within it, without those that have a vocabulary of their own, or none."""
    yield config
    for key, value in config.items():
        inner = as_object(value)
        if inner is not None and key.endswith("_config") and key not in _OTHER_VOCABULARIES:
            yield from _places(inner)
