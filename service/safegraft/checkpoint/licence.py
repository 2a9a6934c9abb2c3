"""The licence that a model card declares. Reads the card's metadata: judges nothing."""

from dataclasses import dataclass
from typing import Any

import yaml

from safegraft.checkpoint.strict_json import as_object

CARD_FILE = "README.md"
MAX_CARD_BYTES = 2 << 20
_OTHER = "other"


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
    head = _head(card.decode("utf-8", "replace"))
    declared = head.get("license")
    if isinstance(declared, list) and len(declared) == 1:  # pyright: ignore[reportUnknownArgumentType]
        declared = declared[0]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(declared, str) or not declared.strip():
        return None
    name, link = head.get("license_name"), head.get("license_link")
    return Licence(
        declared.strip().lower(), name if isinstance(name, str) else None, link if isinstance(link, str) else None
    )


def _head(text: str) -> dict[str, Any]:
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((at for at, line in enumerate(lines[1:], 1) if line.strip() == "---"), None)
    if end is None:
        return {}
    try:
        return as_object(yaml.safe_load("\n".join(lines[1:end]))) or {}
    except (yaml.YAMLError, ValueError, RecursionError):  # a stranger's text; a card says little about a model anyway
        return {}
