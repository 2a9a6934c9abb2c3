"""Model references: `PATH[@REVISION][+LORA[@REVISION]]`, mergekit's notation; either path may be a URL.

A URL has no revision: an `@` in it is its own. A `+` in it is written %2B, as it would part an adapter from it. A
folder whose very name has `+` or `@` in it comes first, wherever one is there. Whether anything else exists is for
those to say who open models.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from safegraft.recipe.document import brief

FolderExists = Callable[[str], bool]
_URL = re.compile(r"[A-Za-z][A-Za-z0-9.-]*://.+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Source:
    """A folder, a URL or a Hub name, and the revision of the latter; None: its default branch."""

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.path if self.revision is None else f"{self.path}@{self.revision}"


@dataclass(frozen=True, slots=True)
class Reference:
    """A model, and the LoRA adapter that is added to it."""

    model: Source
    lora: Source | None = None

    def __str__(self) -> str:
        return str(self.model) if self.lora is None else f"{self.model}+{self.lora}"


def is_url(path: str) -> bool:
    """Whether a reference's path is a URL."""
    return _URL.fullmatch(path) is not None


def parse_reference(text: str, folder_exists: FolderExists) -> Reference:
    """Take a reference apart. Raises ValueError, in words for a message, when it means nothing."""
    if folder_exists(text):
        return Reference(Source(text))
    halves = [(text[:at], text[at + 1 :]) for at, sign in enumerate(text) if sign == "+"]
    if len(halves) > 1:
        here = [pair for pair in halves if all(folder_exists(half) for half in pair)]
        if len(here) != 1:
            raise ValueError(
                f"{brief(text)} names several adapters; one can be added to a model. Merge the adapters first "
                "(a recipe of adapters alone gives an adapter)"
            )
        halves = here
    if not halves:
        return Reference(_source(text, text, folder_exists))
    ((model, lora),) = halves
    return Reference(_source(model, text, folder_exists), _source(lora, text, folder_exists))


def _source(part: str, whole: str, folder_exists: FolderExists) -> Source:
    if folder_exists(part) or is_url(part):
        return Source(part)
    path, at, revision = part.rpartition("@")
    if not at:
        path, revision = part, None
    if not path or revision == "":
        missing = "a revision after its `@`" if path else "a folder or a name"
        raise ValueError(f"{brief(whole)} lacks {missing}")
    return Source(path, revision)
