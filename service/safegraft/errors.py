"""Every error safegraft raises on purpose.

    SafegraftError
    ├── RecipeError              the recipe is wrong                      exit 2
    ├── UsageError               a call or a command line is wrong        exit 2
    ├── InputError               an input cannot be used                  exit 3
    │   ├── CheckpointError          a folder or file is not a sound checkpoint
    │   ├── AlignmentError           the inputs do not fit the host model
    │   ├── NonFiniteError           NaN or inf in a weight
    │   └── InputChangedError        an input changed while it was being read
    ├── OutputError              the result cannot be written             exit 1
    ├── PluginError              a plugin broke its contract              exit 1
    ├── MergeCancelledError      somebody cancelled the merge             exit 1
    └── ServerError              the server or the way to it failed       exit 4
        ├── ServerUnavailableError   no answer; trying again may help
        ├── NotFoundError            the server has no such merge or file
        ├── ConflictError            the resource is in a state that does not allow the call
        ├── AuthenticationError      the token is missing or wrong
        └── DataCorruptedError       bytes arrived that do not match their checksum

A message says what is wrong, where, and what to do. An error that gathers several
problems (a recipe's, a folder's) lists all of them, one a line.

This module knows nothing of the rest of the package, of gRPC or of the command line:
`exit_code` and `reason` are what those two read.
"""

import contextlib
import errno
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

__all__ = [
    "AlignmentError",
    "AuthenticationError",
    "CheckpointError",
    "ConflictError",
    "DataCorruptedError",
    "InputChangedError",
    "InputError",
    "MergeCancelledError",
    "NonFiniteError",
    "NotFoundError",
    "OutputError",
    "PluginError",
    "Problem",
    "RecipeError",
    "SafegraftError",
    "ServerError",
    "ServerUnavailableError",
    "UsageError",
    "output_errors",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where it stands, what it is, and what to do about it."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class SafegraftError(Exception):
    """The root. `problems` holds every single finding; the message joins them."""

    exit_code: ClassVar[int] = 1
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, problems: str | Problem | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = [Problem("", problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type["SafegraftError"], tuple[tuple[Problem, ...]]]:
        # Errors cross process borders: workers hand theirs to the server.
        return type(self), (self.problems,)


class RecipeError(SafegraftError):
    """The recipe asks for something that does not exist, does not fit or makes no sense."""

    exit_code = 2
    reason = "RECIPE_INVALID"


class UsageError(SafegraftError):
    """An argument of a call or of the command line is wrong."""

    exit_code = 2
    reason = "USAGE_INVALID"


class InputError(SafegraftError):
    """An input exists in name only: it cannot be used for a merge."""

    exit_code = 3
    reason = "INPUT_UNUSABLE"


class CheckpointError(InputError):
    """A folder or file is not a sound safetensors checkpoint."""

    reason = "CHECKPOINT_INVALID"


class AlignmentError(InputError):
    """The inputs' tensors or vocabularies cannot be laid over the host model's."""

    reason = "ALIGNMENT_FAILED"


class NonFiniteError(InputError):
    """A weight is NaN or infinite."""

    reason = "INPUT_NOT_FINITE"


class InputChangedError(InputError):
    """An input's files changed between planning and reading, or while being read."""

    reason = "INPUT_CHANGED"


class OutputError(SafegraftError):
    """The result cannot be written: disk full, folder in the way, no permission."""

    reason = "OUTPUT_FAILED"


class PluginError(SafegraftError):
    """A plugin broke its contract: wrong shape, wrong dtype, an exception of its own."""

    reason = "PLUGIN_FAILED"


class MergeCancelledError(SafegraftError):
    """The merge was cancelled. What is complete stays, so a rerun continues."""

    reason = "MERGE_CANCELLED"


class ServerError(SafegraftError):
    """The server, or the way to it, failed."""

    exit_code = 4
    reason = "SERVER_FAILED"


class ServerUnavailableError(ServerError):
    """No answer came. Nothing is known to be wrong with the request: try again."""

    reason = "SERVER_UNAVAILABLE"


class NotFoundError(ServerError):
    """The server has no merge, file or blob of that name."""

    reason = "NOT_FOUND"


class ConflictError(ServerError):
    """The resource's state does not allow the call: a merge that has ended cannot be cancelled."""

    reason = "CONFLICT"


class AuthenticationError(ServerError):
    """The token is missing or wrong."""

    reason = "UNAUTHENTICATED"


class DataCorruptedError(ServerError):
    """Bytes do not match their checksum."""

    reason = "DATA_CORRUPTED"


@contextlib.contextmanager
def output_errors(path: Path) -> Generator[None]:
    """Turn an OSError within the block, which writes `path`, into an OutputError in words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"{path}: the disk is full; free some space and run the same command again") from error
        raise OutputError(f"{path}: cannot write: {error.strerror or error}") from error
