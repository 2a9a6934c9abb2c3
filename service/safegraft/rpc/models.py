"""Which models and data a recipe may name on this server: those under named roots, uploads, and what its owner allows
of the Hub and of URLs.

A reference is "ROOT/path/within", "path/within" when there is one root only, "upload:SHA256", "ORG/NAME[@REVISION]" or
a URL; "MODEL+ADAPTER" joins two of them. A path in a root comes first. Nothing else can be opened, whatever the recipe
says. Plain data, so that it travels to worker processes.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from safegraft.checkpoint.adapter import AdapterFolder
from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.checkpoint.lora import add_adapter
from safegraft.checkpoint.types import Checkpoint
from safegraft.errors import CheckpointError, Problem, UsageError
from safegraft.recipe.reference import Source, parse_reference
from safegraft.remote.access import HubAccess, scrub
from safegraft.rpc.blobs import BlobStore, UploadedFolder
from safegraft.rpc.remote_models import Pins, RemoteModels

UPLOAD_PREFIX = "upload:"
Opened = TypeVar("Opened", bound=Checkpoint)
# Path, name, sha256 by file, root.
Opener = Callable[[Path, str, Mapping[str, str] | None, Path | None], Opened]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ModelRoot:
    """A folder whose subfolders may be used as models. `path` is absolute and free of symlinks."""

    name: str
    path: Path

    @classmethod
    def parse(cls, argument: str) -> "ModelRoot":
        """Read a command line's "PATH" or "PATH=NAME"; without a name the folder's own is used. Raises UsageError."""
        path_text, named, name = argument.rpartition("=")
        if not named:
            path_text, name = argument, ""
        path = Path(path_text).expanduser()
        if not path_text or not path.is_dir():
            raise UsageError(f"--models {argument}: {path_text or '(nothing)'} is not a folder")
        path = path.resolve()
        name = name or path.name
        if not _NAME.fullmatch(name):
            raise UsageError(f"--models {argument}: {name!r} cannot be a root's name; give one with {path_text}=NAME")
        return cls(name, path)


@dataclass(frozen=True)
class Models:
    """Everything a recipe may name. Raises UsageError when two roots share a name."""

    roots: tuple[ModelRoot, ...]
    uploads: BlobStore | None = None
    remote: RemoteModels = field(default_factory=RemoteModels)

    def __post_init__(self) -> None:
        names = [root.name for root in self.roots]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"--models: two roots are called {', '.join(twice)}; give them names with PATH=NAME")

    def access(self, credential: str | None = None) -> HubAccess:
        """The way to the Hub with a credential of this server, by its name; None: the server's own.

        Raises UsageError when there is none of that name, ServerError when its file cannot be used any more.
        """
        return self.remote.access(credential)

    def open(self, reference: str, credential: str | None = None, pins: Pins | None = None) -> Checkpoint:
        """Open a model by its reference.

        credential: the name of that with which the Hub is read; None: the server's own login.
        pins: the commits at which models of the Hub are opened. Those that it has not yet are added to it, so that
        whoever plans again with the same pins gets the same commits.

        Raises CheckpointError when the reference leads outside the roots, to nothing, to what the owner does not allow,
        or to no sound checkpoint; UsageError and ServerError as `access` does.
        """
        try:
            parsed = parse_reference(reference, self.exists)
        except ValueError as error:
            shown, words = (scrub(one) if "://" in reference else one for one in (reference, str(error)))
            raise self._refusal(shown, f"cannot be opened: {words}") from error
        commits: Pins = {} if pins is None else pins
        model = self._open(parsed.model, FolderCheckpoint, lambda one: self.remote.open_model(one, credential, commits))
        lora = parsed.lora
        if lora is None:
            return model
        return add_adapter(
            model,
            lambda: self._open(lora, AdapterFolder, lambda one: self.remote.open_adapter(one, credential, commits)),
            reference,
        )

    def _open(self, source: Source, kind: Opener[Opened], remote: Callable[[Source], Opened]) -> Opened:
        here = self.exists(source.path)
        if not here and self.remote.allows(source.path):
            return remote(source)
        if source.path.startswith(UPLOAD_PREFIX) and source.revision is None:
            folder = self._uploaded(source.path)
            return kind(folder.path, folder.name, folder.digests, None)
        if source.revision is not None and (here or not self.remote.hint(source.path)):
            message = "names a revision, and a folder has none: name the folder of that revision"
            raise CheckpointError(Problem(str(source), message))
        path, root = self._locate(source.path, Path.is_dir)
        return kind(path, source.path, None, root.path)

    def find_data(self, reference: str) -> Path:
        """The file of a calibration set. Raises CheckpointError as `open` does."""
        return self._locate(reference, Path.is_file)[0]

    def exists(self, reference: str) -> bool:
        """Whether there is a folder of exactly this name. For references with signs that could mean something else."""
        try:
            self._locate(reference, Path.is_dir)
        except CheckpointError:
            return False
        return True

    def _locate(self, reference: str, fits: Callable[[Path], bool]) -> tuple[Path, ModelRoot]:
        """The folder or file that a reference means, and the root it lies in."""
        steps = reference.split("/")
        if reference.startswith(("/", "~")) or "\\" in reference or any(step in ("", ".", "..") for step in steps):
            raise self._refusal(reference, "is not a plain path within one of this server's model roots")
        leaves = False
        for root, within in self._candidates(steps):
            try:
                path = (root.path / within).resolve()
                if not path.is_relative_to(root.path):
                    leaves = True
                elif fits(path):
                    return path, root
            except (OSError, ValueError):  # a name that no file can have
                continue
        if leaves:
            raise self._refusal(reference, "leaves its model root through a symbolic link")
        what = "folder" if fits is Path.is_dir else "file"
        raise self._refusal(reference, f"is not a {what} on this server")

    def _candidates(self, steps: list[str]) -> Iterable[tuple[ModelRoot, str]]:
        for root in self.roots:
            if root.name == steps[0]:
                yield root, "/".join(steps[1:])
        if len(self.roots) == 1:
            yield self.roots[0], "/".join(steps)

    def _refusal(self, reference: str, what: str) -> CheckpointError:
        if not self.roots:
            hint = "this server has no model roots; upload the model, or start the server with --models"
        elif len(self.roots) == 1:
            name = self.roots[0].name
            hint = f"name models as {name}/PATH or just PATH, as they lie within the root {name!r}"
        else:
            hint = f"name models as ROOT/PATH, with ROOT one of {', '.join(root.name for root in self.roots)}"
        if network := self.remote.hint(reference):
            hint += f"; {network}"
        return CheckpointError(Problem(reference, f"{what}; {hint}"))

    def _uploaded(self, reference: str) -> UploadedFolder:
        if self.uploads is None:
            raise CheckpointError(Problem(reference, "this server takes no uploads"))
        return self.uploads.assemble(reference.removeprefix(UPLOAD_PREFIX))


def uploads_in(reference: str) -> list[str]:
    """The digests of the uploads that a reference names."""
    return [part.removeprefix(UPLOAD_PREFIX) for part in reference.split("+") if part.startswith(UPLOAD_PREFIX)]
