"""Says of which files that came over a network it is not known, by their sha256, that they are the ones listed."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from safegraft.cli.terminal import note

if TYPE_CHECKING:
    from safegraft.checkpoint.types import Checkpoint


def note_unverified(checkpoints: "Iterable[Checkpoint]") -> None:
    """One line for each model. Not a fault: every range was of the pinned version, as the server said."""
    for checkpoint in checkpoints:
        verified = checkpoint.verified()
        missing = sum(not one for one in verified.values())
        if missing:
            note(
                f"note: {checkpoint.name}: {len(verified) - missing} of {len(verified)} weight files could be compared "
                "with their sha256; the others were needed in part, or in another order (--verify-inputs reads all)"
            )
