"""What is found when a result is verified: each file's state, and which states are faults. Only data."""

from dataclasses import dataclass
from typing import Any, Literal

from safegraft.hub.file_kinds import is_loaded
from safegraft.hub.manifest import Manifest

CARD = "README.md"

Status = Literal["same", "differs", "missing", "extra", "edited"]


@dataclass(frozen=True)
class Recomputation:
    """What came of the recipe when it was merged again.

    files: each weight file, index and sidecar; "missing" is one that the recipe gives and the result does not have,
    "extra" the reverse. versions: package -> (then, now), inputs: public names, both of what is not as it was.
    guessed_layout: the manifest does not say how large the weight files may be, so the usual size was taken.
    """

    plan_digest: str
    same_plan: bool
    versions: dict[str, tuple[str | None, str | None]]
    inputs: tuple[str, ...]
    files: tuple[tuple[str, Status], ...]
    guessed_layout: bool

    @property
    def ok(self) -> bool:
        return all(status == "same" for _, status in self.files)


@dataclass(frozen=True)
class Verification:
    """What was found of a result.

    files: of the manifest, then what else lies there. believed: files of which the Hub's own digest was compared,
    and not their bytes.
    """

    name: str
    manifest: Manifest
    files: tuple[tuple[str, Status], ...]
    believed: tuple[str, ...] = ()
    recomputed: Recomputation | None = None

    @property
    def ok(self) -> bool:
        """Whether everything that can change what is loaded is as it should be."""
        return not self.wrong() and (self.recomputed is None or self.recomputed.ok)

    def wrong(self) -> list[tuple[str, Status]]:
        """The files that are not as they should be: neither an edited card nor what changes nothing counts."""
        fine = ("same", "edited")
        return [
            (name, one) for name, one in self.files if one not in fine and not (one == "extra" and not is_loaded(name))
        ]

    def to_dict(self) -> dict[str, Any]:
        """The document that `safegraft verify --json` prints."""
        wrong = set(self.wrong())
        document: dict[str, Any] = {
            "name": self.name,
            "ok": self.ok,
            "plan_digest": self.manifest.plan_digest,
            "files": [
                {"name": name, "status": status, "wrong": (name, status) in wrong} for name, status in self.files
            ],
            "believed": list(self.believed),
        }
        if self.recomputed is not None:
            again = self.recomputed
            document["recomputed"] = {
                "ok": again.ok,
                "plan_digest": again.plan_digest,
                "same_plan": again.same_plan,
                "versions": {name: {"then": then, "now": now} for name, (then, now) in again.versions.items()},
                "inputs": list(again.inputs),
                "files": [{"name": name, "status": status} for name, status in again.files],
                "guessed_layout": again.guessed_layout,
            }
        return document
