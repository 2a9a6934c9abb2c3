"""The Python client: typed, blocking, and patient with connections that break.

Every call raises SafegraftErrors and nothing of gRPC's. Streams resume by themselves. A call that waits can be
interrupted at any time and leaves nothing running on the server but the merge or publication itself.
"""

import hashlib
import itertools
import json
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from safegraft.errors import Problem, RecipeError, ServerUnavailableError, UsageError
from safegraft.recipe import Recipe, read_recipe
from safegraft.rpc.connection import Backoff, Connection
from safegraft.rpc.download import Download, Pull, read_verified
from safegraft.rpc.methods import MethodCatalogue, MethodInfo
from safegraft.rpc.publishing import Publishing
from safegraft.rpc.resources import (
    Merge,
    MergeFile,
    MergeState,
    Publication,
    PublicationState,
    PullResult,
    ServerInfo,
    TransferProgress,
    catalogue_of,
    files_of,
    merge_of,
    method_of,
    plan_document,
    publication_of,
    server_info_of,
)
from safegraft.rpc.upload import Upload
from safegraft.v1 import artifact_service_pb2, merge_pb2, plan_pb2
from safegraft.v1 import merge_service_pb2 as pb

__all__ = [
    "Client",
    "Merge",
    "MergeFile",
    "MergeState",
    "Publication",
    "PublicationState",
    "PullResult",
    "ServerInfo",
    "TransferProgress",
]

RecipeLike = Recipe | Path | str | Mapping[str, Any]
Retention = Literal["keep", "none"]
OnProgress = Callable[[TransferProgress], None]

_RETENTIONS = {"keep": merge_pb2.RETENTION_KEEP, "none": merge_pb2.RETENTION_NONE}
_RECIPE = "recipe"  # what the server calls a recipe in messages: it gets the text without the file's name


class Client:
    """A connection to a safegraft server. Use it as a context manager, or `close` it. Safe to use from several threads.

    Args:
        target: HOST:PORT.
        token: what the server wants as bearer token, if it wants one.
        ca: PEM file with the certificates to trust; switches TLS on.
        timeout: seconds for a call with a single answer.
        patience: seconds without any progress after which a transfer over a broken connection gives up.

    Models in recipes are named as the server knows them. Any call may raise ServerUnavailableError,
    AuthenticationError, and ServerError for what it does not list.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        ca: Path | None = None,
        timeout: float = 120.0,
        patience: float = 60.0,
    ) -> None:
        self._connection = Connection(target, token=token, ca=ca, timeout=timeout, patience=patience)
        self._timeout = timeout
        self._merges = self._connection.merges
        self._artifacts = self._connection.artifacts

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and every call on it."""
        self._connection.close()

    # -- the server -----------------------------------------------------------------------------

    def health(self) -> bool:
        """True when the server takes calls, False when it is stopping; without one, ServerUnavailableError."""
        return self._connection.healthy()

    def server_info(self) -> ServerInfo:
        """What the server is and allows."""
        return server_info_of(self._connection.call(self._merges.GetServerInfo, pb.GetServerInfoRequest()))

    def methods(self) -> MethodCatalogue:
        """The merge methods a recipe may name there, and the plugins they come from."""
        return catalogue_of(self._connection.call(self._merges.ListMethods, pb.ListMethodsRequest()))

    def method(self, name: str) -> MethodInfo:
        """One merge method. Raises NotFoundError."""
        return method_of(self._connection.call(self._merges.GetMethod, pb.GetMethodRequest(name=name)))

    # -- merges ---------------------------------------------------------------------------------

    def plan(
        self, recipe: RecipeLike, *, max_shard_size: int | None = None, hub_credential: str | None = None
    ) -> dict[str, Any]:
        """What a merge would do: the document that `safegraft plan --json` prints.

        hub_credential: the server's, by its name, with which models on the Hub are read.

        Raises RecipeError and InputError, each with every problem found.
        """
        asked = _read(recipe)
        request = pb.PlanMergeRequest(
            recipe=asked.text, max_shard_size=max_shard_size or 0, hub_credential=hub_credential or ""
        )
        whole = plan_pb2.Plan()
        with _places_in(asked):
            for part in self._connection.stream(self._merges.PlanMerge, request, timeout=self._timeout):
                whole.MergeFrom(part)
        return plan_document(whole)

    def create(
        self,
        recipe: RecipeLike,
        *,
        request_id: str | None = None,
        max_shard_size: int | None = None,
        threads: int | None = None,
        retention: Retention = "keep",
        hub_credential: str | None = None,
        validate_only: bool = False,
    ) -> Merge:
        """Have a merge computed. Returns as soon as it is planned; from then on its files can be read.

        Args:
            request_id: the same id with the same request gives the same merge; default: a new one each time.
            retention: "none" keeps nothing on the server's disk and computes bytes when they are read.
            hub_credential: the server's, by its name, with which models on the Hub are read.
            validate_only: check everything, create nothing, and return the merge with an empty id.

        Raises RecipeError, InputError, OutputError when the server's disk is too full, UsageError.
        """
        if retention not in _RETENTIONS:
            raise UsageError(Problem("retention", f"must be 'keep' or 'none', not {retention!r}"))
        asked = _read(recipe)
        request = pb.CreateMergeRequest(
            recipe=asked.text,
            max_shard_size=max_shard_size or 0,
            threads=threads or 0,
            retention=_RETENTIONS[retention],
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
            hub_credential=hub_credential or "",
        )
        with _places_in(asked):
            return merge_of(self._connection.call(self._merges.CreateMerge, request))

    def get(self, id: str) -> Merge:
        """A merge in full. Raises NotFoundError."""
        return merge_of(self._connection.call(self._merges.GetMerge, pb.GetMergeRequest(name=f"merges/{id}")))

    def list(self) -> Iterator[Merge]:
        """All merges, the newest first."""
        token = ""
        while True:
            page = self._connection.call(self._merges.ListMerges, pb.ListMergesRequest(page_token=token))
            yield from map(merge_of, page.merges)
            token = page.next_page_token
            if not token:
                return

    def watch(self, id: str, after_revision: int = 0) -> Iterator[Merge]:
        """The merge as it is now, then again whenever it changes, until it has ended. Raises NotFoundError."""
        backoff = Backoff(self._connection.patience)
        while True:
            request = pb.WatchMergeRequest(name=f"merges/{id}", after_revision=after_revision)
            try:
                for answer in self._connection.stream(self._merges.WatchMerge, request):
                    backoff.progressed()
                    if answer.HasField("merge"):
                        after_revision = answer.merge.revision
                        yield merge_of(answer.merge)
                return
            except ServerUnavailableError as error:
                backoff.wait(error)

    def wait(self, id: str) -> Merge:
        """Wait until a merge has ended, however that may be, and return it in full. Raises NotFoundError."""
        for _ in self.watch(id):
            pass
        return self.get(id)

    def cancel(self, id: str) -> Merge:
        """Stop a merge. Raises NotFoundError, and ConflictError when it has ended otherwise."""
        return merge_of(self._connection.call(self._merges.CancelMerge, pb.CancelMergeRequest(name=f"merges/{id}")))

    def delete(self, id: str) -> None:
        """Remove a merge that has ended, with its files. Raises NotFoundError, ConflictError."""
        self._connection.call(self._merges.DeleteMerge, pb.DeleteMergeRequest(name=f"merges/{id}"))

    # -- the Hub --------------------------------------------------------------------------------

    def publish(
        self,
        id: str,
        repo: str,
        *,
        private: bool = True,
        revision: str | None = None,
        pull_request: bool = False,
        tags: Sequence[str] = (),
        message: str | None = None,
        replace: bool = False,
        evaluation: bytes | Path | None = None,
        plot: bytes | Path | None = None,
        unevaluated: bool = False,
        credential: str | None = None,
        token: str | None = None,
        progress: OnProgress | None = None,
    ) -> Publication:
        """Have the server publish a merge to a repository on the Hugging Face Hub; returns when it is there.

        Joins the same publication where it is running already, and continues it where it came to nothing. Ctrl-C ends
        the waiting, not the publication.

        Args:
            repo: ORG/NAME, made if it is not there.
            private: a new repository is seen by its members only, and one that is public is refused.
            revision: the branch, made if it is not there; None: main.
            pull_request: propose it to main instead.
            tags: to set on the commit.
            message: the commit's title; None: one that says what was merged.
            replace: take the place of a model that safegraft did not publish.
            evaluation: what `safegraft evaluate` wrote about this result; answers in it are not sent.
            plot: of the trade-off, for the card; a PNG.
            unevaluated: publish without an evaluation, which the card then says.
            credential: the server's, by its name, to publish with.
            token: one's own for the Hub instead. The server holds it until the end and stores it nowhere; without `ca`
                everybody on the way can read it.

        Raises UsageError, InputError for an evaluation that is none, NotFoundError, ConflictError when something else
        is being published there, MergeCancelledError, and the publication's own error when it fails.
        """
        request = pb.PublishMergeRequest(
            name=f"merges/{id}",
            repository=repo,
            public=not private,
            revision=revision or "",
            pull_request=pull_request,
            tags=tags,
            message=message or "",
            replace=replace,
            evaluation=_evaluation_bytes(evaluation),
            plot=_content(plot),
            unevaluated=unevaluated,
            credential=credential or "",
        )
        return Publishing(self._connection, request, token, progress).run()

    def cancel_publication(self, merge_id: str, publication_id: str) -> Publication:
        """Stop a publication. Raises NotFoundError, and ConflictError when it has ended otherwise."""
        request = pb.CancelPublicationRequest(name=f"merges/{merge_id}/publications/{publication_id}")
        return publication_of(self._connection.call(self._merges.CancelPublication, request))

    # -- files ----------------------------------------------------------------------------------

    def files(self, id: str) -> tuple[MergeFile, ...]:
        """A merge's files in the order in which they are computed. Raises NotFoundError."""
        found: tuple[MergeFile, ...] = ()
        token = ""
        while True:
            request = artifact_service_pb2.ListFilesRequest(parent=f"merges/{id}", page_token=token)
            page = self._connection.call(self._artifacts.ListFiles, request)
            found += files_of(page.files)
            token = page.next_page_token
            if not token:
                return found

    def read(self, id: str, file: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes [start, stop) of a file in order, each chunk verified; follows a merge that is still running.

        A whole file is verified too: DataCorruptedError after its last byte says that it arrived damaged.

        Raises NotFoundError, UsageError for a range outside the file, and the merge's own error when it fails.
        """
        if start < 0 or (stop is not None and stop < start):
            raise UsageError(f"[{start}, {stop}) is not a range of bytes")
        download = Download(self._connection, id, file, start, stop)
        return read_verified(download, file) if start == 0 else iter(download)

    def pull(self, id: str, out: Path | str, progress: OnProgress | None = None) -> PullResult:
        """Fetch a merge into the folder `out`, which appears when it is complete and verified. A rerun continues.

        Raises NotFoundError, OutputError, DataCorruptedError, and the merge's own error when it fails.
        """
        return Pull(self._connection, self.get(id), progress).run(Path(out))

    def merge(
        self,
        recipe: RecipeLike,
        out: Path | str,
        progress: OnProgress | None = None,
        *,
        max_shard_size: int | None = None,
        threads: int | None = None,
        retention: Retention = "keep",
        hub_credential: str | None = None,
    ) -> PullResult:
        """Create a merge and pull it while it is computed. A rerun continues with the same merge, if it is still good.

        Raises what `create` and `pull` raise.
        """
        asked = _read(recipe)
        planned = self.create(
            asked,
            max_shard_size=max_shard_size,
            threads=threads,
            retention=retention,
            hub_credential=hub_credential,
            validate_only=True,
        )
        # From the plan, not the recipe alone: when an input has changed, so has the merge.
        identity = [planned.plan_digest, planned.inputs_modified]
        content = json.dumps([*identity, asked.text, max_shard_size, threads, retention, hub_credential])
        key = hashlib.sha256(content.encode()).hexdigest()
        for attempt in itertools.count(1):
            merge = self.create(
                asked,
                request_id=f"merge-{key}-{attempt}",
                max_shard_size=max_shard_size,
                threads=threads,
                retention=retention,
                hub_credential=hub_credential,
            )
            # An earlier run's failure is history: ask for the merge again, and get a new one.
            if merge.state not in (MergeState.FAILED, MergeState.CANCELLED):
                return self.pull(merge.id, out, progress)
        raise AssertionError("itertools.count does not end")

    def upload(self, folder: Path | str, progress: OnProgress | None = None) -> str:
        """Send a checkpoint; returns how a recipe names it on that server, "upload:..." . A rerun continues.

        Raises CheckpointError, InputChangedError, and OutputError when the server's quota is spent.
        """
        return Upload(self._connection, Path(folder), progress).run()


def _read(recipe: RecipeLike) -> Recipe:
    """Raises RecipeError. Model names mean nothing here, so none is mistaken for more than a name."""
    return recipe if isinstance(recipe, Recipe) else read_recipe(recipe, folder_exists=lambda _: True)


def _evaluation_bytes(source: bytes | Path | None) -> bytes:
    """An evaluation without its answers. Raises InputError."""
    if source is None:
        return b""
    from safegraft.hub.evaluation import read_evaluation

    return read_evaluation(source).to_bytes()


def _content(source: bytes | Path | None) -> bytes:
    if not isinstance(source, Path):
        return source or b""
    try:
        return source.read_bytes()
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from error


@contextmanager
def _places_in(recipe: Recipe) -> Generator[None]:
    """The server's findings name their place in "recipe"; the caller knows it by its file's name."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError([Problem(_place(one.where, recipe.name), one.message) for one in error.problems]) from error


def _place(where: str, name: str) -> str:
    rest = where.removeprefix(_RECIPE)
    return name + rest if rest != where and rest[:1] in ("", ":") else where
