"""Publishes a result to the Hugging Face Hub: shard by shard, and visible all at once, in one commit.

While a shard is being sent the next one is computed, so that two of them at most lie on disk. What has been sent is
noted: another run sends it no more. Which requests that takes is the business of repository.py and uploading.py.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegraft.checkpoint.hub_cache import hub_name
from safegraft.engine.execute import never
from safegraft.engine.staging import MANIFEST, FileDigest
from safegraft.errors import InputChangedError, OutputError
from safegraft.hub.edition import Edition, digest_of
from safegraft.hub.evaluation import EvaluationDocument
from safegraft.hub.hashing import Progress, silent
from safegraft.hub.journal import Journal
from safegraft.hub.outlook import Outlook, preview
from safegraft.hub.publication import MAIN, Destination, Preview, Publication
from safegraft.hub.repository import Made, Repository
from safegraft.hub.results import Result, ResultFile, Staged
from safegraft.hub.retrying import stop_if
from safegraft.hub.scratch import require_space, scratch_folder
from safegraft.hub.uploading import Uploads, quiet_library
from safegraft.remote.access import HubAccess
from safegraft.remote.errors import hub_errors

__all__ = ["Destination", "Preview", "Publication", "preview", "publish", "require_place"]

_MOST_NAMED = 3  # models in a commit's title

Never = Callable[[], bool]


def publish(
    result: Result,
    destination: Destination,
    access: HubAccess,
    *,
    evaluation: EvaluationDocument | None = None,
    unevaluated: bool = False,
    plot: bytes | None = None,
    evaluation_digest: str | None = None,
    scratch: Path,
    journal: Path,
    progress: Progress | None = None,
    cancelled: Never = never,
) -> Publication:
    """Publish a result. Where the repository holds all of it already, no commit is made; missing tags are set.

    Whatever goes wrong before the commit leaves nothing that can be seen, but for a new repository, or branch, without
    it. Run again, it continues. That the repository holds a shard of the same plan is believed, as its safegraft.json
    says so and the Hub has a file of that sha256; `safegraft verify --recompute` is for those who doubt it.

    Args:
        evaluation: what the card is to say; `unevaluated` instead has it warn that there is none.
        plot: of the trade-off, as PNG, for the card.
        evaluation_digest: sha256 of the file that `evaluation` was read from; default: of what was read.
        scratch: a folder with room for two shards, unless the result lies on disk already.
        journal: the folder for notes of what has been sent.
        progress: told, by the caller's thread, bytes done, bytes in all and the file. What the Hub had is done.
        cancelled: asked again and again, from two threads; once true, MergeCancelledError is raised.

    Raises UsageError and InputError before anything is asked or made; OutputError in the Hub's name; ConflictError when
    somebody else changed the branch meanwhile; InputChangedError; the errors of reading and merging.
    """
    destination.check()
    edition = Edition(
        result,
        destination.repo,
        evaluation=evaluation,
        unevaluated=unevaluated,
        plot=plot,
        evaluation_digest=evaluation_digest,
    )
    notes = Journal(
        journal, access.url, destination.repo, destination.branch, result.digest, newer_than=result.newer_than
    )
    with quiet_library(), hub_errors(destination.repo, OutputError):
        repository = Repository(access, destination, cancelled)
        repository.require_account()
        found = Outlook.look(repository, edition, destination)
        if not found.head.exists:
            repository.create()
            found = Outlook.look(repository, edition, destination)
        if found.unchanged:
            edition = edition.settled(found.shards)
            repository.make_branch(found.head)
            outcome = _Outcome(Made(found.head.parent or "", destination.branch), unchanged=True)
        else:
            uploads = Uploads(
                access,
                destination.repo,
                destination.branch if found.head.branch else MAIN,
                pull_request=destination.pull_request,
                cancelled=cancelled,
            )
            publisher = _Publisher(
                edition, destination, repository, found, uploads, notes, progress or silent, cancelled
            )
            try:
                outcome = publisher.run(scratch)
                edition = publisher.edition
            except InputChangedError:
                notes.discard()  # what was sent may be of either version
                raise
        notes.discard()
        repository.tag(outcome.made.commit)
    return _told(edition, destination, repository.url, found, outcome)


def require_place(destination: Destination, access: HubAccess) -> None:
    """Raise what `publish` would before it computes anything: no token, no right, something else is there."""
    destination.check()
    with quiet_library(), hub_errors(destination.repo, OutputError):
        repository = Repository(access, destination, never)
        repository.require_account()
        head = repository.look()
        repository.require_visibility(head)
        head.removals((), replace=destination.replace, where=destination.repo)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The commit; the bytes that were sent for it; whether an earlier run's were used."""

    made: Made
    sent: int = 0
    resumed: bool = False
    unchanged: bool = False


class _Publisher:
    """One publication on its way. edition: as it is by now known to be."""

    def __init__(
        self,
        edition: Edition,
        destination: Destination,
        repository: Repository,
        found: Outlook,
        uploads: Uploads,
        notes: Journal,
        progress: Progress,
        cancelled: Never,
    ) -> None:
        self.edition, self._destination, self._repository = edition, destination, repository
        self._found, self._uploads, self._notes, self._cancelled = found, uploads, notes, cancelled
        self._progress, self._done, self._total = progress, 0, edition.size

    def run(self, scratch: Path) -> _Outcome:
        """Send what is missing, and make the commit."""
        noted = self._noted()
        digests = {**noted, **self._found.shards}
        self._done = sum(one.size for one in digests.values())
        with ExitStack() as stack:
            operations: list[Any] = self._uploads.known(noted)
            pending = [one for one in self.edition.large if one.name not in digests]
            if pending:
                folder = stack.enter_context(scratch_folder(scratch, self._notes.key))
                operations += self._send(pending, folder, digests)
        self.edition = self.edition.settled(digests)
        small = self.edition.small()
        digests |= {name: digest_of(content) for name, content in small.items()}
        small[MANIFEST] = self.edition.manifest(digests)
        self._tell(MANIFEST, 0)
        operations += self._uploads.small(small)
        self.edition.result.verify_all(self._cancelled)
        stop_if(self._cancelled)
        made = self._commit(operations, small[MANIFEST])
        self._progress(self._total, self._total, "")
        return _Outcome(made, self._uploads.bytes_sent, resumed=bool(noted))

    def _noted(self) -> dict[str, FileDigest]:
        """What an earlier run has sent, the Hub still has, and the head has not."""
        noted: dict[str, FileDigest] = {}
        for file in self.edition.large:
            digest = self._notes.files.get(file.name)
            if file.name in self._found.shards or digest is None or digest.size != file.size:
                continue
            if self.edition.result.expected(file.name) in (None, digest):
                noted[file.name] = digest
        there = self._uploads.there(noted)
        return {name: digest for name, digest in noted.items() if name in there}

    def _send(self, pending: Sequence[ResultFile], folder: Path, digests: dict[str, FileDigest]) -> list[Any]:
        """Send these files, one while the next is being computed; what they hold is added to `digests`."""
        result, operations = self.edition.result, list[Any]()
        if not result.in_place:
            require_space(folder, max(_pairs([one.size for one in pending])))
        failed = threading.Event()
        with ThreadPoolExecutor(1, thread_name_prefix="safegraft-stage") as thread:

            def stage(place: int) -> "Future[Staged] | None":
                if place == len(pending):
                    return None
                stop = lambda: failed.is_set() or self._cancelled()  # noqa: E731
                return thread.submit(result.stage, pending[place].name, folder, stop)

            try:
                following = stage(0)
                for place, file in enumerate(pending):
                    assert following is not None
                    self._tell(file.name, 0)
                    staged = following.result()
                    following = stage(place + 1)
                    operations.append(self._uploads.large(file.name, staged, self._tell))
                    if not result.in_place:
                        staged.path.unlink()
                    digests[file.name] = FileDigest(staged.size, staged.sha256)
                    self._notes.record(file.name, digests[file.name])
                    self._done += file.size
            finally:
                failed.set()
        return operations

    def _commit(self, operations: list[Any], manifest: bytes) -> Made:
        from huggingface_hub import CommitOperationDelete

        operations += [CommitOperationDelete(name) for name in self._found.removed]
        title = self._destination.message or _title(self.edition.result)
        description = (
            f"Published by safegraft.\n\nplan digest: {self.edition.result.digest}\n"
            f"sha256 of {MANIFEST}: {digest_of(manifest).sha256}"
        )
        head = self._found.head
        proposed = self._repository.find(head, description) if self._destination.pull_request else None
        return proposed or self._repository.commit(head, operations, title, description)

    def _tell(self, name: str, position: int) -> None:
        self._progress(self._done + position, self._total, name)


def _pairs(sizes: Sequence[int]) -> list[int]:
    """Of each file and the next."""
    return [one + following for one, following in zip(sizes, [*sizes[1:], 0], strict=True)]


def _title(result: Result) -> str:
    names = [hub_name(one) or one.rpartition("/")[2] for one in result.inputs]
    if 0 < len(names) <= _MOST_NAMED and all(one.isprintable() for one in names):
        return f"Merge of {' and '.join(names)}"
    return f"Merge of {len(names)} models"


def _told(edition: Edition, destination: Destination, url: str, found: Outlook, outcome: "_Outcome") -> Publication:
    made = outcome.made
    if made.pull_request is None and made.revision != MAIN:
        url = f"{url}/tree/{made.revision}"
    return Publication(
        repo=destination.repo,
        url=made.pull_request or url,
        commit=made.commit,
        revision=made.revision,
        pull_request=made.pull_request,
        tags=tuple(destination.tags),
        private=found.head.private,
        plan_digest=edition.result.digest,
        evaluated=edition.evaluated,
        files=len(edition.names),
        bytes_total=edition.size,
        bytes_uploaded=outcome.sent,
        resumed=outcome.resumed,
        unchanged=outcome.unchanged or made.commit == found.head.parent,
        removed=() if outcome.unchanged else tuple(found.removed),
        notes=(*edition.notes, *found.notes(edition)),
    )
