"""What somebody asks of a publication, and what has come of it. Only data."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from safegraft.checkpoint.hub_cache import HUB_NAME
from safegraft.errors import Problem, UsageError

MAIN = "main"
MAX_TAGS = 20
_REF = re.compile(
    r"(?!.*(\.\.|//|@\{))[A-Za-z0-9](?:[\w./+-]*[A-Za-z0-9_+-])?", re.ASCII
)  # a branch or tag, as git has it
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a result goes.

    repo: "org/name". private: of a repository that is made; with it, one that is public already is refused.
    revision: a branch, made when it is not there; None: main. pull_request: propose it to main instead.
    tags: set on the commit. message: the commit's title; None: one that says what was merged.
    replace: take the place of a model that safegraft did not publish.

    `check` raises UsageError with everything in it that cannot be.
    """

    repo: str
    private: bool = True
    revision: str | None = None
    pull_request: bool = False
    tags: Sequence[str] = ()
    message: str | None = None
    replace: bool = False

    @property
    def branch(self) -> str:
        return self.revision or MAIN

    def check(self) -> None:
        problems: list[Problem] = []
        if not HUB_NAME.fullmatch(self.repo):
            problems.append(Problem(self.repo, "is not a name that the Hub can have; write ORG/NAME"))
        for kind, names in (("branch", [self.branch]), ("tag", self.tags)):
            problems += [Problem(one, f"is no name of a {kind}") for one in names if not _is_ref(one)]
        if len(self.tags) > MAX_TAGS:
            problems.append(Problem("tags", f"at most {MAX_TAGS} can be set at once, and these are {len(self.tags)}"))
        if self.message is not None and not (self.message.strip() and self.message.isprintable()):
            problems.append(Problem("message", "is the commit's title: one line of text"))
        if self.branch in self.tags:
            problems.append(Problem(self.branch, "is the branch: choose another name for the tag"))
        if self.pull_request and self.branch != MAIN:
            problems.append(Problem(self.branch, "a pull request is made to main: leave the revision away"))
        if self.pull_request and self.tags:
            problems.append(Problem("tags", "a pull request is not merged yet: set tags when it is"))
        if problems:
            raise UsageError(problems)


@dataclass(frozen=True, slots=True)
class Publication:
    """A result that is published.

    url: where people look at it. commit: 40 hex digits. revision: the branch, or "refs/pr/N". pull_request: its URL.
    private: of the repository as it is. evaluated: whether the card holds an evaluation. files: how many.
    bytes_total, bytes_uploaded: over all files, and how much of it this run had to send. resumed: whether an earlier
    run's uploads were used. unchanged: the repository held all of it already, so that no commit was made.
    removed: files of an earlier model that went with it. notes: what whoever published it should know.
    """

    repo: str
    url: str
    commit: str
    revision: str
    pull_request: str | None
    tags: tuple[str, ...]
    private: bool
    plan_digest: str
    evaluated: bool
    files: int
    bytes_total: int
    bytes_uploaded: int
    resumed: bool
    unchanged: bool = False
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The document that `safegraft push --json` prints."""
        return asdict(self) | {"tags": list(self.tags), "removed": list(self.removed), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Publication":
        """Raises TypeError when it is none."""
        lists: dict[str, Any] = {name: tuple(document.get(name, ())) for name in ("tags", "removed", "notes")}
        return cls(**{**document, **lists})


@dataclass(frozen=True, slots=True)
class Preview:
    """What a publication would do. parent: the commit that it would be made upon; None: the repository would be made.

    private: of the repository, as it is or would be. files: name and size in bytes. bytes_there: of shards that the
    repository has already. removed: files that would go. branch: whether it is there. unchanged: no commit would be
    made.
    """

    repo: str
    exists: bool
    private: bool
    revision: str
    parent: str | None
    pull_request: bool
    tags: tuple[str, ...]
    plan_digest: str
    evaluated: bool
    files: tuple[tuple[str, int], ...]
    bytes_total: int
    bytes_there: int
    removed: tuple[str, ...]
    unchanged: bool
    branch: bool = True
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The document that `safegraft push --dry-run --json` prints."""
        files = [{"name": name, "size_bytes": size} for name, size in self.files]
        lists = {"tags": list(self.tags), "removed": list(self.removed), "notes": list(self.notes)}
        return asdict(self) | lists | {"files": files}


def _is_ref(name: str) -> bool:
    if name == "HEAD" or name.startswith(("refs/", "pr/")) or _COMMIT.fullmatch(name):  # they mean something else
        return False
    return _REF.fullmatch(name) is not None and not name.endswith(".lock")
