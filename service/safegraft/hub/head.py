"""What a repository holds where something is to be published, and what would have to go first. Asks nobody."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from safegraft.engine.staging import MANIFEST
from safegraft.errors import OutputError, Problem
from safegraft.hub.file_kinds import is_loaded, is_weights
from safegraft.hub.manifest import Manifest

ATTRIBUTES = ".gitattributes"

_SHOWN = 5  # names in a message


@dataclass(frozen=True, slots=True)
class HeadFile:
    """A file of the commit that is built upon. sha256: only of files that LFS or Xet hold."""

    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Head:
    """What a repository holds where something is to be published.

    parent: the commit that is built upon; None: there is no such repository. private: as it is, or will be.
    branch: whether it is there; a new one begins at main's head. manifest: of the safegraft publication that it holds,
    and its bytes. card_edited: whether its README.md is another by now.
    modified_ns: when the repository was last changed, in nanoseconds since the epoch.
    """

    parent: str | None
    private: bool
    branch: bool = False
    files: Mapping[str, HeadFile] = field(default_factory=dict[str, HeadFile])
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    manifest: Manifest | None = None
    manifest_bytes: bytes = b""
    card_edited: bool = False
    modified_ns: int = 0

    @property
    def exists(self) -> bool:
        return self.parent is not None

    def removals(self, names: Collection[str], *, replace: bool, where: str) -> list[str]:
        """What has to go so that nothing of an earlier model is left beside files of these names.

        Raises OutputError when that is not safegraft's, and replacing it was not asked for.
        """
        ours = set[str](self.manifest.files) if self.manifest else set[str]()
        others = [name for name in self.files if name not in names and name not in (ATTRIBUTES, MANIFEST)]
        left = [name for name in others if name not in ours]
        if self.manifest is None:
            lost = {*filter(is_loaded, left), *names}  # what stands beside a model, and is not written over, may stay
            in_the_way = [name for name in self.files if name in lost and name != ATTRIBUTES]
        else:
            in_the_way = [name for name in left if is_weights(name)]
        if in_the_way and not replace:
            shown = ", ".join(in_the_way[:_SHOWN]) + (" ..." if len(in_the_way) > _SHOWN else "")
            message = f"holds what safegraft did not publish ({shown}): choose another repository, or add --replace"
            raise OutputError(Problem(where, message))
        return [name for name in others if name in ours or (replace and name in left and is_loaded(name))]
