"""Who starts, joins, continues and stops a publication, and what is remembered of it. The worker is a puppet here."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safegraft.errors import (
    ConflictError,
    InputError,
    MergeCancelledError,
    NotFoundError,
    OutputError,
    SafegraftError,
    ServerUnavailableError,
    UsageError,
)
from safegraft.hub.publication import Destination
from safegraft.hub.publication import Publication as Outcome
from safegraft.rpc import publications
from safegraft.rpc.changes import Changes
from safegraft.rpc.database import open_database, sqlite_in
from safegraft.rpc.job import Job, JobError, JobState, PlanSummary
from safegraft.rpc.jobs import JobStore
from safegraft.rpc.messages import Progressed, Published, PublishTask
from safegraft.rpc.pool import WorkerDiedError
from safegraft.rpc.publication import NEXT, Asked, Publication, PublicationState, Publicity, PublishProgress
from safegraft.rpc.publication_store import MAX_REMEMBERED, PublicationStore
from safegraft.rpc.publications import MAX_UNDER_WAY, Publisher

TOKEN = "hf_" + "t0ken" * 7
PLAN = PlanSummary("d" * 64, "lvlm", (("a", 10), ("b", 20)), (), 3, (), 0)
OUTCOME = Outcome(
    repo="org/name",
    url="https://hub/org/name",
    commit="c" * 40,
    revision="main",
    pull_request=None,
    tags=("v1",),
    private=True,
    plan_digest="d" * 64,
    evaluated=True,
    files=3,
    bytes_total=40,
    bytes_uploaded=40,
    resumed=False,
    notes=("is it of this model?",),
)
RUNNING, SUCCEEDED, FAILED, CANCELLED = PublicationState


def job(state: JobState = JobState.SUCCEEDED, retention: Any = "none", id: str = "m") -> Job:
    return Job(id, state, 1, 1, 1, None, "f", "recipe", 5, 1, retention, PLAN)


def asked(repo: str = "org/name", *, request_id: str | None = None, merge: str = "m", **more: Any) -> Asked:
    destination = Destination(repo, **more)
    return Asked(merge, destination, "", Publicity(b"{}", None, TOKEN), str(destination), request_id)


@dataclass(eq=False)
class Puppet:
    """A worker whose answers a test puts in, one by one; errors are raised."""

    answers: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    task: PublishTask | None = None
    cancelled: int = 0
    heeds: bool = True

    async def assign(self, task: PublishTask) -> None:
        self.task = task

    async def receive(self) -> Any:
        answer = await self.answers.get()
        if isinstance(answer, SafegraftError):
            raise answer
        return answer

    async def cancel(self) -> None:
        self.cancelled += 1
        if self.heeds:
            self.answers.put_nowait(MergeCancelledError("stopped"))

    def kill(self) -> None:
        self.answers.put_nowait(WorkerDiedError("killed"))


class Pool:
    """Hands out one puppet after the other, and one at a time."""

    def __init__(self) -> None:
        self.leased: list[Puppet] = []
        self._slot = asyncio.Semaphore(1)

    @contextlib.asynccontextmanager
    async def lease(self) -> AsyncGenerator[Puppet]:
        async with self._slot:
            self.leased.append(Puppet())
            yield self.leased[-1]

    async def at_work(self, count: int = 1) -> Puppet:
        """The puppet that got the `count`th task."""
        await until(lambda: len(self.leased) >= count and self.leased[count - 1].task)
        return self.leased[count - 1]


@dataclass
class Stage:
    publisher: Publisher
    store: PublicationStore
    jobs: JobStore
    pool: Pool
    changes: Changes
    data: Path

    async def ended(self, one: Publication) -> Publication:
        await until(lambda: self.store.get(one.merge, one.id).state.final)
        return self.store.get(one.merge, one.id)


async def until(look: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not look():
            await asyncio.sleep(0.005)


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Callable[[Stage], Awaitable[None]]], None]:
    """Run a scene with a publisher over a database that has the merge `m`."""

    def run(scene: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            engine = open_database(sqlite_in(tmp_path), "data")
            jobs, store, pool, changes = JobStore(engine), PublicationStore(engine), Pool(), Changes()
            with contextlib.suppress(Exception):  # there since an earlier scene
                jobs.insert(job())
            runner = SimpleNamespace(files=lambda id: tmp_path / "merges" / id / "files")
            publisher = Publisher(tmp_path, jobs, store, runner, pool, changes)  # type: ignore[arg-type]
            await publisher.start()
            try:
                await scene(Stage(publisher, store, jobs, pool, changes, tmp_path))
            finally:
                await publisher.stop()
                engine.dispose()

        asyncio.run(main())

    return run


def test_a_publication_from_its_beginning_to_its_end(play: Any):
    async def scene(stage: Stage) -> None:
        one = await stage.publisher.publish(asked(tags=("v1",)))
        assert (one.state, one.progress) == (RUNNING, PublishProgress(0, 30, ""))
        worker = await stage.pool.at_work()
        assert worker.task is not None
        assert worker.task.destination == Destination("org/name", tags=("v1",))
        assert (worker.task.publicity.token, worker.task.out) == (TOKEN, None)
        worker.answers.put_nowait(Progressed("a", 10, bytes_total=40))
        await until(lambda: stage.store.get("m", one.id).progress == PublishProgress(10, 40, "a"))
        worker.answers.put_nowait(Published(OUTCOME))
        ended = await stage.ended(one)
        assert (ended.state, ended.outcome) == (SUCCEEDED, OUTCOME)
        assert ended.progress == PublishProgress(40, 40, "")
        assert stage.store.of("m") == [ended]

    play(scene)


def test_the_folder_of_a_kept_merge_is_published(play: Any):
    async def scene(stage: Stage) -> None:
        stage.jobs.insert(job(retention="keep", id="kept"))
        await stage.publisher.publish(asked(merge="kept"))
        worker = await stage.pool.at_work()
        assert worker.task is not None
        assert worker.task.out == stage.data / "merges" / "kept" / "files"

    play(scene)


def test_it_waits_for_its_merge(play: Any):
    async def scene(stage: Stage) -> None:
        stage.jobs.insert(job(JobState.RUNNING, "keep", "slow"))
        one = await stage.publisher.publish(asked(merge="slow"))
        await asyncio.sleep(0.05)
        assert not stage.pool.leased
        stage.jobs.update("slow", state=JobState.SUCCEEDED)
        stage.changes.announce("slow")
        (await stage.pool.at_work()).answers.put_nowait(Published(OUTCOME))
        assert (await stage.ended(one)).state is SUCCEEDED

    play(scene)


@pytest.mark.parametrize(
    ("state", "error", "reason"),
    [
        (JobState.FAILED, JobError("INPUT_UNUSABLE", (("llm", "is gone"),)), InputError.reason),
        (JobState.CANCELLED, None, MergeCancelledError.reason),
    ],
)
def test_it_fails_with_its_merge(play: Any, state: JobState, error: JobError | None, reason: str):
    async def scene(stage: Stage) -> None:
        stage.jobs.insert(job(JobState.QUEUED, "keep", "lost"))
        one = await stage.publisher.publish(asked(merge="lost"))
        stage.jobs.update("lost", state=state, error=error)
        stage.changes.announce("lost")
        ended = await stage.ended(one)
        assert (ended.state, ended.error and ended.error.reason) == (FAILED, reason)
        assert error in (None, ended.error)
        with pytest.raises(ConflictError, match="nothing to publish"):
            await stage.publisher.publish(asked(merge="lost"))

    play(scene)


def test_the_same_joins_and_another_to_the_same_place_is_refused(play: Any):
    async def scene(stage: Stage) -> None:
        one = await stage.publisher.publish(asked())
        assert (await stage.publisher.publish(asked())).id == one.id
        for other in (asked("org/name", private=False), asked("ORG/Name"), asked(revision="main", tags=("v1",))):
            with pytest.raises(ConflictError, match="other settings"):
                await stage.publisher.publish(other)
        elsewhere = await stage.publisher.publish(asked(revision="branch"))
        assert elsewhere.id != one.id

    play(scene)


def test_one_works_at_a_time_and_only_so_many_wait(play: Any):
    async def scene(stage: Stage) -> None:
        begun = [await stage.publisher.publish(asked(f"org/n{n}")) for n in range(MAX_UNDER_WAY)]
        with pytest.raises(ServerUnavailableError, match="under way"):
            await stage.publisher.publish(asked("org/one-more"))
        await asyncio.sleep(0.05)
        assert len(stage.pool.leased) == 1
        (await stage.pool.at_work()).answers.put_nowait(Published(OUTCOME))
        await until(lambda: any(stage.store.get(one.merge, one.id).state.final for one in begun))
        await stage.pool.at_work(2)
        await stage.publisher.publish(asked("org/one-more"))

    play(scene)


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_what_came_to_nothing_is_continued(play: Any, how: str):
    async def scene(stage: Stage) -> None:
        one = await stage.publisher.publish(asked())
        worker = await stage.pool.at_work()
        if how == "failed":
            worker.answers.put_nowait(OutputError("the Hub is full"))
        else:
            await stage.publisher.cancel("m", one.id)
        ended = await stage.ended(one)
        assert (ended.state, ended.error is None) == (PublicationState(how), how == "cancelled")
        again = await stage.publisher.publish(asked())
        assert (again.id, again.state, again.error) == (one.id, RUNNING, None)
        second = await stage.pool.at_work(2)
        assert second.task == replace(worker.task), "with the same journal"
        second.answers.put_nowait(Published(OUTCOME))
        assert (await stage.ended(one)).state is SUCCEEDED
        another = await stage.publisher.publish(asked())
        assert another.id != one.id, "what has succeeded is over: this is asked for anew"

    play(scene)


def test_a_request_id_means_one_publication_whatever_has_become_of_it(play: Any):
    async def scene(stage: Stage) -> None:
        one = await stage.publisher.publish(asked(request_id="first"))
        joined = await stage.publisher.publish(asked(request_id="second"))
        assert joined.id == one.id
        with pytest.raises(UsageError, match="fresh one"):
            await stage.publisher.publish(asked(request_id="first", tags=("v1",)))
        (await stage.pool.at_work()).answers.put_nowait(Published(OUTCOME))
        ended = await stage.ended(one)
        for id in ("first", "second"):
            assert await stage.publisher.publish(asked(request_id=id)) == ended
        assert (await stage.publisher.publish(asked(request_id="third"))).id != one.id

    play(scene)


def test_one_that_fails_says_why(play: Any):
    async def scene(stage: Stage) -> None:
        one = await stage.publisher.publish(asked())
        scratch = stage.data / "merges" / "m" / "publishing" / one.id
        scratch.mkdir(parents=True)
        (await stage.pool.at_work()).answers.put_nowait(OutputError("the Hub is full"))
        ended = await stage.ended(one)
        assert (ended.state, ended.error) == (FAILED, JobError("OUTPUT_FAILED", (("", "the Hub is full"),)))
        assert not (stage.data / "merges" / "m").exists()

    play(scene)


def test_a_worker_may_die_once(play: Any):
    async def scene(stage: Stage) -> None:
        one = await stage.publisher.publish(asked())
        (await stage.pool.at_work()).kill()
        second = await stage.pool.at_work(2)
        assert second.task is not None
        assert second.task.publicity.token == TOKEN
        second.kill()
        ended = await stage.ended(one)
        assert ended.state is FAILED
        assert ended.error is not None
        assert ended.error.reason == "SERVER_FAILED"
        assert "lost 2 workers" in ended.error.problems[0][1]
        assert "call again: it continues" in ended.error.problems[0][1]

    play(scene)


def test_one_that_waits_is_cancelled_without_a_worker(play: Any):
    async def scene(stage: Stage) -> None:
        first = await stage.publisher.publish(asked())
        worker = await stage.pool.at_work()
        second = await stage.publisher.publish(asked("org/other"))
        assert (await stage.publisher.cancel("m", second.id)).state is CANCELLED
        assert (await stage.publisher.cancel("m", second.id)).state is CANCELLED, "again is no error"
        assert (stage.store.get("m", first.id).state, worker.cancelled) == (RUNNING, 0)

    play(scene)


def test_a_worker_is_told_to_stop_and_killed_when_it_does_not(play: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(publications, "STOP_SECONDS", 0.1)

    async def scene(stage: Stage) -> None:
        one = await stage.publisher.publish(asked())
        worker = await stage.pool.at_work()
        worker.heeds = False
        assert (await stage.publisher.cancel("m", one.id)).state is CANCELLED
        assert worker.cancelled == 1

    play(scene)


@pytest.mark.parametrize(("answer", "state"), [(Published(OUTCOME), SUCCEEDED), (OutputError("full"), FAILED)])
def test_what_ended_just_before_it_could_be_stopped_has_ended(play: Any, answer: Any, state: PublicationState):
    async def scene(stage: Stage) -> None:
        one = await stage.publisher.publish(asked())
        worker = await stage.pool.at_work()
        worker.heeds = False
        cancelling = asyncio.create_task(stage.publisher.cancel("m", one.id))
        await until(lambda: worker.cancelled)
        worker.answers.put_nowait(answer)
        with pytest.raises(ConflictError, match=f"has {state}"):
            await cancelling
        assert (await stage.ended(one)).state is state

    play(scene)


def test_only_what_is_there_can_be_published_and_cancelled(play: Any):
    async def scene(stage: Stage) -> None:
        one = await stage.publisher.publish(asked())
        for merge, id in (("m", "other"), ("other", one.id)):
            with pytest.raises(NotFoundError):
                await stage.publisher.cancel(merge, id)
        with pytest.raises(NotFoundError):
            await stage.publisher.publish(asked(merge="other"))

    play(scene)


@pytest.mark.parametrize("waits", [False, True])
def test_a_server_that_stops_leaves_it_to_be_continued(play: Any, waits: bool):
    async def scene(stage: Stage) -> None:
        one = await stage.publisher.publish(asked())
        if not waits:
            await stage.pool.at_work()
        await stage.publisher.stop()
        ended = stage.store.get("m", one.id)
        assert ended.state is FAILED
        assert ended.error is not None
        assert ended.error.reason == "SERVER_UNAVAILABLE"
        assert "call again: it continues" in ended.error.problems[0][1]

    play(scene)


def test_a_server_ends_what_a_killed_one_has_left(play: Any, tmp_path: Path):
    async def killed(stage: Stage) -> None:
        stage.store.insert(Publication("p", "m", RUNNING, 1, 1, 1, "f", Destination("org/name"), "", False))
        for folder in ("merges/m/publishing/p", "publishing/m", "publishing/deleted"):
            (tmp_path / folder).mkdir(parents=True)

    async def next_one(stage: Stage) -> None:
        found = stage.store.get("m", "p")
        assert (found.state, found.revision) == (FAILED, 2)
        assert found.error is not None
        assert found.error.reason == "SERVER_UNAVAILABLE"
        assert not (tmp_path / "merges/m/publishing").exists()
        assert [folder.name for folder in (tmp_path / "publishing").iterdir()] == ["m"]

    play(killed)
    play(next_one)


def test_the_token_is_written_nowhere(play: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(0)

    async def scene(stage: Stage) -> None:
        one = await stage.publisher.publish(asked())
        worker = await stage.pool.at_work()
        assert TOKEN not in f"{worker.task!r} {worker.task} {stage.publisher._runs} {asked()!r}"
        worker.answers.put_nowait(OutputError("no"))
        await stage.ended(one)

    play(scene)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"org/name" in written
    assert TOKEN.encode() not in written
    assert TOKEN not in caplog.text


# -- the table ------------------------------------------------------------------------------------


def test_everything_of_a_publication_is_stored(play: Any):
    async def scene(stage: Stage) -> None:
        destination = Destination("org/name", False, "branch", True, ("v1", "v2"), "a title", True)
        progress = PublishProgress(1, 2, "a")
        error = JobError("OUTPUT_FAILED", (("disk", "full"),))
        whole = Publication(
            "p", "m", FAILED, 3, 4, 5, "f" * 64, destination, "team", True, progress, ("r",), OUTCOME, error
        )
        assert stage.store.insert(whole) == whole
        assert stage.store.get("m", "p") == whole

    play(scene)


@pytest.mark.parametrize("before", PublicationState)
@pytest.mark.parametrize("after", PublicationState)
def test_only_the_listed_transitions_are_made(play: Any, before: PublicationState, after: PublicationState):
    async def scene(stage: Stage) -> None:
        stage.store.insert(Publication("p", "m", before, 1, 1, 1, "f", Destination("org/name"), "", False))
        if after in NEXT[before]:
            assert stage.store.update("p", state=after).revision == 2
        else:
            with pytest.raises(ConflictError):
                stage.store.update("p", state=after)
        assert stage.store.get("m", "p").state is (after if after in NEXT[before] else before)

    play(scene)


def test_of_very_many_the_oldest_that_came_to_nothing_goes_first(play: Any):
    async def scene(stage: Stage) -> None:
        for n in range(MAX_REMEMBERED):
            state = SUCCEEDED if n % 2 == 0 else CANCELLED
            stage.store.insert(Publication(f"p{n}", "m", state, 1, n, n, "f", Destination("org/name"), "", False))
        stage.store.insert(Publication("new", "m", SUCCEEDED, 1, 999, 999, "f", Destination("org/name"), "", False))
        ids = [one.id for one in stage.store.of("m")]
        assert len(ids) == MAX_REMEMBERED
        assert "p1" not in ids
        assert ids[:2] == ["p0", "p2"]
        assert ids[-1] == "new"

    play(scene)
