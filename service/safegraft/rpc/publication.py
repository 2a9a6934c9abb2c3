"""A publication: what is asked for, and what the server remembers of it. Data only.

What callers send along stays apart from what is stored, so that no token of theirs is ever written.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from safegraft.hub.publication import Destination
from safegraft.hub.publication import Publication as Outcome
from safegraft.rpc.job import JobError

TOKEN_HEADER = "x-hub-token"  # in which callers send a token of their own


class PublicationState(enum.StrEnum):
    """Mirrors PublicationState in merge.proto, which says what each means."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self is not PublicationState.RUNNING


# Where a state leads. What has not succeeded can be taken up again.
NEXT: Mapping[PublicationState, frozenset[PublicationState]] = MappingProxyType(
    {
        PublicationState.RUNNING: frozenset(PublicationState) - {PublicationState.RUNNING},
        PublicationState.SUCCEEDED: frozenset(),
        PublicationState.FAILED: frozenset({PublicationState.RUNNING}),
        PublicationState.CANCELLED: frozenset({PublicationState.RUNNING}),
    }
)


@dataclass(frozen=True, slots=True)
class PublishProgress:
    """Over all files, in bytes: what is at its place, and the sum. current_file: the one at work; "": none is."""

    bytes_done: int = 0
    bytes_total: int = 0
    current_file: str = ""


@dataclass(frozen=True, slots=True)
class Publication:
    """One publication of a merge. Times are microseconds since the epoch.

    fingerprint: of all that was asked for but the caller's token. requests: the request ids that mean this one.
    outcome: set when it has succeeded.
    """

    id: str
    merge: str
    state: PublicationState
    revision: int
    created: int
    updated: int
    fingerprint: str
    destination: Destination
    credential: str
    evaluated: bool
    progress: PublishProgress = PublishProgress()
    requests: tuple[str, ...] = ()
    outcome: Outcome | None = None
    error: JobError | None = None

    @property
    def name(self) -> str:
        """As the API calls it."""
        return f"merges/{self.merge}/publications/{self.id}"

    @property
    def place(self) -> tuple[str, str]:
        """Two publications to one place would get in each other's way."""
        return place_of(self.destination)


@dataclass(frozen=True, slots=True)
class Publicity:
    """What a publication needs and the server does not store.

    evaluation: results.json; None: the card is to say that there is none. plot: a PNG. token: the caller's own for the
    Hub; None: a credential of the server's is used.
    """

    evaluation: bytes | None = field(default=None, repr=False)
    plot: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Asked:
    """A publication that is asked for. fingerprint: of everything but the token and the request id."""

    merge: str
    destination: Destination
    credential: str
    publicity: Publicity
    fingerprint: str
    request_id: str | None

    @property
    def place(self) -> tuple[str, str]:
        return place_of(self.destination)


def place_of(destination: Destination) -> tuple[str, str]:
    """The repository and the branch. The Hub has no two names that differ in case only."""
    return destination.repo.lower(), destination.branch
