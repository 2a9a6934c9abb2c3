"""A repository on the Hub: what is asked of it before something is published there, and what is done to it then.

Whatever fails for a while is tried again. Knows no shards and sends no files; see uploading.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from safegraft.engine.staging import MANIFEST
from safegraft.errors import CheckpointError, ConflictError, OutputError, Problem, SafegraftError
from safegraft.hub.edition import digest_of
from safegraft.hub.head import Head, HeadFile
from safegraft.hub.manifest import MAX_MANIFEST_BYTES, Manifest, read_manifest
from safegraft.hub.publication import MAIN, Destination
from safegraft.hub.results import CARD, MAX_CARD_BYTES
from safegraft.hub.retrying import ATTEMPTS, may_pass, pause, retried
from safegraft.remote.access import HubAccess, scrub
from safegraft.remote.errors import LOG_IN, hub_errors
from safegraft.remote.hub import open_hub

STALE = 412
EXISTS = 409

_LOOKED_AT = 20  # pull requests, newest first, among which one of ours may be

Never = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Made:
    """A commit that is there. revision: the branch, or "refs/pr/N"; pull_request: its URL."""

    commit: str
    revision: str
    pull_request: str | None = None


class Repository:
    """One repository, spoken to as one account. Errors are the client library's, for `hub_errors` to put into words,
    unless they are said to be others."""

    def __init__(self, access: HubAccess, destination: Destination, cancelled: Never) -> None:
        self.name = destination.repo
        self.url = f"{scrub(access.url)}/{destination.repo}"
        self._access = access
        self._api: Any = access.api()
        self._destination = destination
        self._cancelled = cancelled

    # -- looking --------------------------------------------------------------------------------

    def require_account(self) -> None:
        """Raise OutputError unless there is a token that may write."""
        if self._access.token is False:
            raise OutputError(Problem(self.name, f"publishing needs a token: {LOG_IN}"))
        account = self._ask(self._api.whoami)
        token = account.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise OutputError(Problem(self.name, f"the token may only read: use one that may write ({LOG_IN})"))
        self._namespaces = {account["name"], *(one["name"] for one in account.get("orgs", []))}

    def look(self) -> Head:
        """What is there now. Raises OutputError when the account may not write there."""
        try:
            info = self._ask(lambda: self._api.model_info(self.name, files_metadata=True))
        except RepositoryNotFoundError:
            return self._absent()
        if not self._destination.pull_request:
            self._ask(lambda: self._api.auth_check(self.name, write=True))
        refs = self._ask(lambda: self._api.list_repo_refs(self.name))
        branch = self._destination.branch
        there = branch in {one.name for one in refs.branches}
        if there and branch != MAIN:
            info = self._ask(lambda: self._api.model_info(self.name, revision=branch, files_metadata=True))
        files = _files(info)
        manifest_bytes, manifest, card_edited = self._publication(info.sha, files)
        return Head(
            parent=info.sha,
            private=bool(info.private),
            branch=there,
            files=files,
            tags={one.name: one.target_commit for one in refs.tags},
            manifest=manifest,
            manifest_bytes=manifest_bytes,
            card_edited=card_edited,
            modified_ns=int(info.last_modified.timestamp() * 1e9) if info.last_modified else 0,
        )

    def _absent(self) -> Head:
        if self._destination.pull_request:
            raise OutputError(Problem(self.name, "there is no such repository to propose anything to: check the name"))
        namespace = self.name.partition("/")[0]
        if namespace not in self._namespaces:
            known = ", ".join(sorted(self._namespaces))
            message = f"the account may not make a repository under {namespace}; it may under {known}"
            raise OutputError(Problem(self.name, message))
        return Head(None, self._destination.private)

    def _publication(self, commit: str, files: Mapping[str, HeadFile]) -> tuple[bytes, Manifest | None, bool]:
        """The manifest of the publication that is there, None when there is none or it is not sound; and whether its
        card is another by now."""
        if MANIFEST not in files or files[MANIFEST].size > MAX_MANIFEST_BYTES:
            return b"", None, False
        store = open_hub(self.name, commit, self._access)
        try:
            content = store.read(store.listing.files[MANIFEST], 0, files[MANIFEST].size)
            try:
                manifest = read_manifest(content, MANIFEST)
            except CheckpointError:
                return b"", None, False
            card = store.listing.files.get(CARD)
            if card is None or CARD not in manifest.files or card.size > MAX_CARD_BYTES:
                return content, manifest, False
            return content, manifest, digest_of(store.read(card, 0, card.size)) != manifest.files[CARD]
        finally:
            store.close()

    # -- what may be done -----------------------------------------------------------------------

    def require_visibility(self, head: Head) -> None:
        """Raise OutputError when something private would be seen by everybody."""
        if head.exists and not head.private and self._destination.private:
            message = "is public, and a repository's visibility is never changed here: add --public to publish there"
            raise OutputError(Problem(self.name, message))

    def require_tags(self, head: Head, may_be_at: str | None) -> None:
        """Raise OutputError when a tag is at another commit than this, or has the name of a new branch. A tag that is
        there already never moves."""
        if not head.branch and self._destination.branch in head.tags:
            message = f"{self._destination.branch} is a tag there: choose another name for the branch"
            raise OutputError(Problem(self.name, message))
        taken = [one for one in self._destination.tags if head.tags.get(one) not in (None, may_be_at)]
        if taken:
            at = ", ".join(f"{one} at {head.tags[one][:12]}" for one in taken)
            message = f"has {'this tag' if len(taken) == 1 else 'these tags'} already ({at})"
            raise OutputError(Problem(self.name, f"{message}: choose others, or delete them on the Hub first"))

    # -- doing ----------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the repository, empty, unless it is there."""
        private = self._destination.private
        self._ask(lambda: self._api.create_repo(self.name, private=private, exist_ok=True))

    def commit(self, head: Head, operations: Sequence[Any], title: str, description: str) -> Made:
        """Make one commit of everything. Raises ConflictError when somebody else has changed the branch.

        description: tells this publication from every other. After an answer that was lost, the commit is looked for
        before it is made again.
        """
        proposed = self._destination.pull_request
        branch = None if proposed else self._destination.branch
        self.make_branch(head)
        failed = 0
        while True:
            try:
                info = self._api.create_commit(
                    self.name,
                    operations,
                    commit_message=title,
                    commit_description=description,
                    revision=branch,
                    parent_commit=head.parent,
                    create_pr=proposed,
                )
                return self._made(info)
            except (HfHubHTTPError, httpx2.TransportError) as error:
                stale = isinstance(error, HfHubHTTPError) and error.response.status_code == STALE
                if not stale and not may_pass(error):
                    raise
                made = self.find(head, description)
                if made is not None:
                    return made
                failed += 1
                if stale:
                    message = "somebody else has changed it meanwhile; run again: what was uploaded is not sent again"
                    raise ConflictError(Problem(self.name, message)) from error
                if failed == ATTEMPTS:
                    raise
                pause(error, failed, self._cancelled)

    def make_branch(self, head: Head) -> None:
        """Make the branch at the head's commit, unless it is there or a pull request is asked for."""
        if self._destination.pull_request or head.branch:
            return
        branch = self._destination.branch
        self._ask(lambda: self._api.create_branch(self.name, branch=branch, revision=head.parent, exist_ok=True))

    def _made(self, info: Any) -> Made:
        if not self._destination.pull_request:
            return Made(info.oid, self._destination.branch)
        return Made(info.oid, info.pr_revision, info.pr_url)

    def find(self, head: Head, description: str) -> Made | None:
        """The commit upon the head's that has this description, if it was made, or proposed."""
        if not self._destination.pull_request:
            commit = self._upon(self._destination.branch, head, description)
            return Made(commit, self._destination.branch) if commit else None
        refs = self._ask(lambda: self._api.list_repo_refs(self.name, include_pull_requests=True))
        pulls: list[Any] = refs.pull_requests or []
        numbers = sorted((int(one.ref.rpartition("/")[2]) for one in pulls), reverse=True)
        for number in numbers[:_LOOKED_AT]:
            revision = f"refs/pr/{number}"
            commit = self._upon(revision, head, description)
            if commit:
                return Made(commit, revision, f"{self.url}/discussions/{number}")
        return None

    def _upon(self, revision: str, head: Head, description: str) -> str | None:
        for one in self._ask(lambda: self._api.list_repo_commits(self.name, revision=revision)):
            if one.commit_id == head.parent:
                return None
            if one.message.strip() == description.strip():
                return one.commit_id
        return None

    def tag(self, commit: str) -> None:
        """Set the tags that are missing. Raises OutputError, which says that the commit is there all the same."""
        for tag in self._destination.tags:
            try:
                with hub_errors(self.name, OutputError):
                    self._ask(lambda tag=tag: self._tag(tag, commit))
            except SafegraftError as error:
                reason = error.problems[0].message
                message = f"is published, as commit {commit}, but without the tag {tag}: {reason}"
                raise OutputError(Problem(self.name, f"{message}. Run again: only what is missing is done")) from error

    def _tag(self, tag: str, commit: str) -> None:
        try:
            self._api.create_tag(self.name, tag=tag, revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != EXISTS:
                raise
            at = {one.name: one.target_commit for one in self._api.list_repo_refs(self.name).tags}.get(tag)
            if at != commit:
                raise OutputError(Problem(self.name, f"it is at commit {str(at)[:12]} already")) from error

    def _ask(self, action: Callable[[], Any]) -> Any:
        return retried(action, self._cancelled)


def _files(info: Any) -> dict[str, HeadFile]:
    siblings: list[Any] = info.siblings or []
    return {one.rfilename: HeadFile(one.size or 0, one.lfs.sha256 if one.lfs else None) for one in siblings}
