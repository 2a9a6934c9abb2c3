"""What publishing would change in a repository: found out by looking, before anything is made or computed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safegraft.engine.execute import Never, never
from safegraft.engine.staging import MANIFEST, FileDigest
from safegraft.errors import OutputError
from safegraft.hub.edition import Edition, digest_of
from safegraft.hub.evaluation import EvaluationDocument
from safegraft.hub.head import Head
from safegraft.hub.publication import Destination, Preview
from safegraft.hub.repository import Repository
from safegraft.hub.results import CARD, Result
from safegraft.hub.uploading import quiet_library
from safegraft.remote.access import HubAccess
from safegraft.remote.errors import hub_errors


@dataclass(frozen=True, slots=True)
class Outlook:
    """The repository as it is. shards: the large files of this very plan that it has. removed: what would go.

    unchanged: it holds all of it, and nothing has to be done but set tags.
    """

    head: Head
    shards: Mapping[str, FileDigest]
    removed: Sequence[str]
    unchanged: bool

    @classmethod
    def look(cls, repository: Repository, edition: Edition, destination: Destination) -> "Outlook":
        """Raises OutputError when it must not be published there."""
        head = repository.look()
        repository.require_visibility(head)
        removed = head.removals(edition.names, replace=destination.replace, where=destination.repo)
        shards = _shards_of(head, edition)
        unchanged = not removed and _holds(head, edition, shards)
        repository.require_tags(head, may_be_at=head.parent if unchanged else None)
        return cls(head, shards, removed, unchanged)

    def preview(self, edition: Edition, destination: Destination) -> Preview:
        """The same in words for people."""
        files = [(one.name, one.size) for one in edition.files]
        return Preview(
            repo=destination.repo,
            exists=self.head.exists,
            private=self.head.private,
            revision=destination.branch,
            parent=self.head.parent,
            pull_request=destination.pull_request,
            tags=tuple(destination.tags),
            plan_digest=edition.result.digest,
            evaluated=edition.evaluated,
            files=(*files, (MANIFEST, edition.manifest_size)),
            bytes_total=edition.size,
            bytes_there=sum(one.size for one in edition.large if one.name in self.shards),
            removed=tuple(self.removed),
            unchanged=self.unchanged,
            branch=self.head.branch,
            notes=(*edition.notes, *self.notes(edition)),
        )

    def notes(self, edition: Edition) -> list[str]:
        """What of value is replaced."""
        before = self.head.manifest
        if not self.head.branch or before is None or self.unchanged:
            return []
        notes: list[str] = []
        if before.plan_digest != edition.result.digest:
            notes.append(f"the merge that is there, of plan {before.plan_digest[:12]}, is replaced by another one")
        if self.head.card_edited:
            notes.append(
                f"{CARD} was edited on the Hub since it was published, and is replaced; what it said stays in the "
                "repository's history"
            )
        if json.loads(self.head.manifest_bytes).get("evaluation") and not edition.evaluated:
            notes.append("what is there was evaluated, and what replaces it is not")
        return notes


def preview(
    result: Result,
    destination: Destination,
    access: HubAccess,
    *,
    evaluation: EvaluationDocument | None = None,
    unevaluated: bool = False,
    plot: bytes | None = None,
    evaluation_digest: str | None = None,
    cancelled: Never = never,
) -> Preview:
    """What `publish` would do, found out without changing or computing anything. Raises what that raises at first."""
    destination.check()
    edition = Edition(
        result,
        destination.repo,
        evaluation=evaluation,
        unevaluated=unevaluated,
        plot=plot,
        evaluation_digest=evaluation_digest,
    )
    with quiet_library(), hub_errors(destination.repo, OutputError):
        repository = Repository(access, destination, cancelled)
        repository.require_account()
        return Outlook.look(repository, edition, destination).preview(edition, destination)


def _shards_of(head: Head, edition: Edition) -> dict[str, FileDigest]:
    """The large files of this plan that the head has, by its own account and the Hub's."""
    result = edition.result
    if head.manifest is None or head.manifest.plan_digest != result.digest or head.modified_ns < result.newer_than:
        return {}
    shards: dict[str, FileDigest] = {}
    for file in edition.large:
        digest, there = head.manifest.files.get(file.name), head.files.get(file.name)
        expected = result.expected(file.name) or digest
        if there and digest and digest == expected == FileDigest(there.size, there.sha256 or ""):
            shards[file.name] = digest
    return shards


def _holds(head: Head, edition: Edition, shards: Mapping[str, FileDigest]) -> bool:
    """Whether the head is this very edition."""
    if len(shards) < len(edition.large) or not edition.names <= head.files.keys():
        return False
    edition = edition.settled(shards)
    digests = {**shards, **{name: digest_of(content) for name, content in edition.small().items()}}
    sizes = all(head.files[name].size == digest.size for name, digest in digests.items())
    return sizes and edition.manifest(digests) == head.manifest_bytes
