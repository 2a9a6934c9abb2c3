"""What whoever started the work wants to know of it, and whether it is still wanted."""

from collections.abc import Callable
from dataclasses import dataclass

from safegraft.errors import MergeCancelledError

Cancelled = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the gathering is, in visits to a layer."""

    done: int
    total: int


Report = Callable[[Progress], None]


def never() -> bool:
    """Nobody cancels."""
    return False


def unreported(progress: Progress) -> None:
    """Nobody asks."""


def stop_if(cancelled: Cancelled) -> None:
    """Raise MergeCancelledError when the work is no longer wanted."""
    if cancelled():
        raise MergeCancelledError(
            "the merge was cancelled while a model was being shown data; that begins anew next time"
        )
