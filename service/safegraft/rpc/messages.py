"""What server and worker processes say to each other over a pipe: tasks one way, answers the other.

A worker does one task at a time. It answers with any number of `Progressed` and `Block`, then with exactly one `Final`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegraft.errors import SafegraftError
from safegraft.hub.publication import Destination, Publication
from safegraft.rpc.methods import MethodCatalogue
from safegraft.rpc.publication import Publicity

# -- tasks ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListMethodsTask:
    """Which methods and plugins are there? Answered with MethodsListed."""


@dataclass(frozen=True, slots=True)
class PlanTask:
    """Plan a recipe. Answered with Planned. keep: the plan, for an Order of it.

    hub_credential: the name of that with which the Hub is read; "": the server's own.
    """

    recipe: str
    max_shard_size: int
    keep: bool = False
    hub_credential: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """A merge to compute: what it was planned from, and the digest and `modified` that planning it again must give.

    pins: the commits of the Hub's models, by their names in the recipe.
    """

    recipe: str
    max_shard_size: int
    threads: int  # 0: the worker's choice
    digest: str
    modified: int
    hub_credential: str = ""
    pins: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class WriteTask:
    """Write a merge to `out`, continuing what is there. Answered with Progressed, then Written."""

    order: Order
    out: Path


@dataclass(frozen=True, slots=True)
class ReadTask:
    """Compute bytes [start, stop) of one file. Answered with Blocks, then ReadDone."""

    order: Order
    file: str
    start: int
    stop: int
    digests: Mapping[str, str]  # sha256 of files that are known already, by name


@dataclass(frozen=True, slots=True)
class PublishTask:
    """Publish a merge's result. Answered with Progressed, then Published.

    out: the folder it lies in; None: compute it. scratch: a folder for what is sent next, removed at the end. journal:
    where what has been sent is written down, for the task that continues this one.
    """

    order: Order
    out: Path | None
    destination: Destination
    credential: str
    publicity: Publicity
    scratch: Path
    journal: Path


Task = ListMethodsTask | PlanTask | WriteTask | ReadTask | PublishTask


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task and its number, by which it can be cancelled without hitting the next one."""

    number: int
    task: Task


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the assignment of this number, if it is still being worked on."""

    number: int


@dataclass(frozen=True, slots=True)
class Took:
    """The server has copied Blocks; their slots may be filled again. All slots are free when a task begins."""

    slots: tuple[int, ...]


# -- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a WriteTask is, over the whole merge, or a PublishTask, over all that is sent (`bytes_total`)."""

    file: str
    bytes_done: int
    tensors_done: int = 0
    bytes_total: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """The next bytes of a ReadTask: the first `size` of a slot of the ring (see ring.py). Answered with Took.

    head: what makes them a message to the client (see frames.py).
    """

    slot: int
    size: int
    head: bytes


@dataclass(frozen=True, slots=True)
class MethodsListed:
    catalogue: MethodCatalogue


@dataclass(frozen=True, slots=True)
class Planned:
    """`document` is what `safegraft plan --json` prints; the others are PlanSummary's."""

    document: dict[str, Any]
    uploads: tuple[str, ...]
    modified: int
    pins: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """The folder is there. sha256 of its files, by name."""

    digests: dict[str, str]


@dataclass(frozen=True, slots=True)
class ReadDone:
    """sha256 of files that were computed from first byte to last, by name."""

    digests: dict[str, str]


@dataclass(frozen=True, slots=True)
class Published:
    publication: Publication


@dataclass(frozen=True, slots=True)
class Failed:
    error: SafegraftError


Final = MethodsListed | Planned | Written | ReadDone | Published | Failed
Answer = Progressed | Block | Final
