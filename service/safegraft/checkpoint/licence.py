"""The licence that a model card declares. Reads the card's metadata: judges nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from safegraft.checkpoint.strict_json import as_object

CARD_FILE = "README.md"
MAX_CARD_BYTES = 2 << 20
_OTHER = "other"
_MAX_LINES, _MAX_ENTRY = 20, 4096  # of one entry; characters


@dataclass(frozen=True, slots=True)
class Licence:
    """id: as the Hub lists licences, "apache-2.0" or "other". name, link: of one that the Hub does not list."""

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def shown(self) -> str:
        """How people call it."""
        return self.name if self.id == _OTHER and self.name else self.id


def read_licence(card: bytes) -> Licence | None:
    """What the YAML head of a model card says under `license`; None when it says nothing, or cannot be read."""
    lines = card[:MAX_CARD_BYTES].decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    declared = _entry(lines, "license")
    if isinstance(declared, list) and len(declared) == 1:  # pyright: ignore[reportUnknownArgumentType]
        declared = declared[0]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(declared, str) or not declared.strip():
        return None
    name, link = _entry(lines, "license_name"), _entry(lines, "license_link")
    return Licence(
        declared.strip().lower(), name if isinstance(name, str) else None, link if isinstance(link, str) else None
    )


def _entry(lines: Sequence[str], key: str) -> Any:
    """One entry of the head. Its lines alone are parsed, as plain texts and lists: a stranger's head can be large, and
    can be built to take ages."""
    if not lines or lines[0].strip() != "---":
        return None
    own: list[str] = []
    for line in lines[1:]:
        if line.strip() == "---" or (own and line[:1] not in ("", " ", "-", "#")):
            break
        if own or line.startswith(f"{key}:"):
            own.append(line)
        if len(own) > _MAX_LINES:
            break
    try:
        found = as_object(yaml.load("\n".join(own)[:_MAX_ENTRY], Loader=yaml.BaseLoader))
    except (yaml.YAMLError, RecursionError):  # a card says little about a model anyway
        return None
    return (found or {}).get(key)
