"""Repositories: trees, commits, branches, tags and pull requests, as git has them. It knows no HTTP and no accounts.

Ids do not depend on a clock: blobs and trees have the ids git gives them, a commit's id follows from its tree, parent,
words and place in the order of commits, and dates count seconds from a fixed day.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from testhub.attributes import DEFAULT
from testhub.objects import File, Objects

_FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)


class StaleParent(Exception):
    """The branch has moved on from the parent a commit names."""


class Conflict(Exception):
    """A pull request and its branch have changed the same file."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit; `files` is its whole tree by path."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, File]


@dataclass(slots=True)
class Event:
    """What happened to a discussion: a comment, a new status or title, a commit."""

    kind: str
    author: str
    date: str
    data: dict[str, object]


@dataclass(slots=True)
class Discussion:
    """A discussion or, with a `base` commit, a pull request whose commits are at `refs/pr/N`."""

    number: int
    title: str
    author: str
    date: str
    base: str | None
    target: str = "main"
    status: str = "open"
    events: list[Event] = field(default_factory=list)
    merge_commit: str | None = None

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.number}"


class Repository:
    """One repository. Every change happens under `lock`; a commit once made never changes."""

    def __init__(self, name: str, objects: Objects, author: str, *, private: bool = False, gated: str = "") -> None:
        self.name = name
        self.private = private
        self.gated = gated
        self.granted: set[str] = set()
        self.lock = threading.RLock()
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pull_heads: dict[str, str] = {}
        self.discussions: list[Discussion] = []
        self.lfs: set[str] = set()
        """Sha256s of the LFS objects that were uploaded to this repository."""
        self._objects = objects
        self._made: dict[str, Commit] = {}
        attributes = objects.add_bytes(DEFAULT)
        self.branches["main"] = self._record({".gitattributes": attributes}, None, "initial commit", "", author).oid

    @property
    def namespace(self) -> str:
        return self.name.split("/")[-2]

    @property
    def kind(self) -> str:
        """`model`, `dataset` or `space`."""
        return self.name.split("/")[0].removesuffix("s") if self.name.count("/") == 2 else "model"

    @property
    def id(self) -> str:
        """`org/name`, whatever its kind."""
        return "/".join(self.name.split("/")[-2:])

    @property
    def head(self) -> str:
        """The newest commit of `main`."""
        return self.branches["main"]

    @property
    def files(self) -> Mapping[str, File]:
        """The files of `main`."""
        return self._made[self.head].files

    @property
    def first(self) -> Commit:
        """The commit it was created with."""
        return next(iter(self._made.values()))

    @property
    def commits(self) -> list[Commit]:
        """The commits of `main`, newest first."""
        return self.history(self.head)

    @property
    def pull_requests(self) -> list[Discussion]:
        return [each for each in self.discussions if each.base is not None]

    def read(self, path: str, revision: str = "main") -> bytes:
        """A file's content.

        Raises:
            KeyError: no such revision or file.
        """
        return self._objects.path(self.commit_at(revision).files[path]).read_bytes()

    def commit_at(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request or (shortened) id names.

        Raises:
            KeyError: none.
        """
        with self.lock:
            for names in (self.branches, self.tags, self.pull_heads):
                if revision.removeprefix("refs/heads/").removeprefix("refs/tags/") in names:
                    return self._made[names[revision.removeprefix("refs/heads/").removeprefix("refs/tags/")]]
            found = [oid for oid in self._made if oid.startswith(revision)] if len(revision) >= 7 else []
            if len(found) != 1:
                raise KeyError(revision)
            return self._made[found[0]]

    def history(self, oid: str) -> list[Commit]:
        """A commit and those before it, newest first."""
        commits: list[Commit] = []
        following: str | None = oid
        while following is not None:
            commits.append(self._made[following])
            following = commits[-1].parent
        return commits

    def commit(
        self,
        ref: str,
        change: Callable[[dict[str, File]], None],
        title: str,
        message: str = "",
        *,
        author: str,
        parent: str | None = None,
    ) -> Commit:
        """Add a commit to a branch or an open pull request: `change` edits a copy of its tree.

        Raises:
            KeyError: no such branch or pull request.
            StaleParent: it does not point to `parent`.
        """
        with self.lock:
            heads = self.pull_heads if ref.startswith("refs/pr/") else self.branches
            head = heads[ref]
            if parent is not None and not (len(parent) >= 7 and head.startswith(parent)):
                raise StaleParent(ref)
            files = dict(self._made[head].files)
            change(files)
            made = self._record(files, head, title, message, author)
            heads[ref] = made.oid
            if heads is self.pull_heads:
                self._discussion(ref).events.append(
                    Event("commit", author, made.date, {"subject": title, "oid": made.oid})
                )
            return made

    def open_discussion(
        self, title: str, text: str, author: str, base: str | None = None, target: str = "main"
    ) -> Discussion:
        """A new discussion or, upon a base commit, a pull request to a branch, without commits of its own yet."""
        with self.lock:
            opened = Discussion(len(self.discussions) + 1, title, author, self.now(), base, target)
            opened.events.append(Event("comment", author, opened.date, _comment(text)))
            if base is not None:
                opened.status = "draft"
                self.pull_heads[opened.ref] = base
            self.discussions.append(opened)
            return opened

    def comment(self, discussion: Discussion, text: str, author: str) -> Event:
        with self.lock:
            discussion.events.append(Event("comment", author, self.now(), _comment(text)))
            return discussion.events[-1]

    def rename(self, discussion: Discussion, title: str, author: str) -> Event:
        with self.lock:
            words: dict[str, object] = {"from": discussion.title, "to": title}
            discussion.events.append(Event("title-change", author, self.now(), words))
            discussion.title = title
            return discussion.events[-1]

    def set_status(self, discussion: Discussion, status: str, author: str) -> Event:
        with self.lock:
            discussion.status = status
            discussion.events.append(Event("status-change", author, self.now(), {"status": status}))
            return discussion.events[-1]

    def merge(self, pull: Discussion, author: str) -> Commit:
        """Bring a pull request's changes to its branch as one commit.

        Raises:
            Conflict: both have changed a file since they parted.
        """
        with self.lock:
            assert pull.base is not None
            theirs, base = self._made[self.pull_heads[pull.ref]].files, self._made[pull.base].files
            changed = {path for path in base.keys() | theirs.keys() if base.get(path) != theirs.get(path)}
            ours = self._made[self.branches[pull.target]].files
            if any(ours.get(path) not in (base.get(path), theirs.get(path)) for path in changed):
                raise Conflict(pull.ref)

            def bring(files: dict[str, File]) -> None:
                for path in changed:
                    if path in theirs:
                        files[path] = theirs[path]
                    else:
                        files.pop(path, None)

            merged = self.commit(pull.target, bring, f"{pull.title} (#{pull.number})", author=author)
            pull.merge_commit = merged.oid
            self.set_status(pull, "merged", author)
            return merged

    def now(self) -> str:
        """The date of the next thing to happen."""
        happened = len(self._made) + sum(len(each.events) for each in self.discussions)
        return (_FIRST_DAY + timedelta(seconds=happened)).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _discussion(self, ref: str) -> Discussion:
        return self.discussions[int(ref.rpartition("/")[2]) - 1]

    def _record(self, files: Mapping[str, File], parent: str | None, title: str, message: str, author: str) -> Commit:
        date = self.now()
        words = "\n".join(
            [tree_oid(files), parent or "", author, title, message, str(len(self._made)), self.name.split("/")[-1]]
        )
        oid = hashlib.sha1(words.encode(), usedforsecurity=False).hexdigest()
        made = self._made[oid] = Commit(oid, parent, title, message, author, date, dict(sorted(files.items())))
        self.lfs.update(file.sha256 for file in files.values() if file.sha256)
        return made


def folders(files: Mapping[str, File]) -> dict[str, dict[str, File]]:
    """Each folder of a tree with the files below it, by their paths from there."""
    found: dict[str, dict[str, File]] = {}
    for path, file in files.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            found.setdefault("/".join(parts[:depth]), {})["/".join(parts[depth:])] = file
    return found


def tree_oid(files: Mapping[str, File]) -> str:
    """The id git gives this tree."""
    entries = [(path, b"100644 ", file.oid) for path, file in files.items() if "/" not in path]
    for name, below in folders(files).items():
        if "/" not in name:
            entries.append((f"{name}/", b"40000 ", tree_oid(below)))  # git sorts a folder as if its name had a slash
    body = b"".join(
        mode + name.rstrip("/").encode() + b"\0" + bytes.fromhex(oid)
        for name, mode, oid in sorted(entries, key=lambda entry: entry[0].encode())
    )
    return hashlib.sha1(b"tree %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


def _comment(text: str) -> dict[str, object]:
    return {"edited": False, "hidden": False, "latest": {"raw": text, "html": text}}
