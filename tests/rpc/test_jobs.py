"""The table of merges: what may change, and who wins."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from safegraft.errors import ConflictError, NotFoundError, UsageError
from safegraft.hub.publication import Destination
from safegraft.rpc.database import open_database, sqlite_in
from safegraft.rpc.job import NEXT, Job, JobError, JobProgress, JobState, PlanSummary, now
from safegraft.rpc.jobs import JobStore
from safegraft.rpc.publication import Publication, PublicationState
from safegraft.rpc.publication_store import PublicationStore

PLAN = PlanSummary("d" * 64, "lvlm", (("a", 10), ("b", 20)), ("mind the gap",), 3, ("e" * 64,), 7)
MakeJob = Callable[..., Job]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    engine = open_database(sqlite_in(tmp_path), "data")
    yield JobStore(engine)
    engine.dispose()


@pytest.fixture
def job() -> MakeJob:
    def make(id: str = "a", **more: object) -> Job:
        first = Job(id, JobState.QUEUED, 1, now(), now(), None, "f" * 64, "recipe", 5, 2, "keep", PLAN)
        return replace(first, **more)

    return make


def test_everything_of_a_job_is_stored(store: JobStore, job: MakeJob):
    whole = job(
        state=JobState.FAILED,
        request_id="r",
        retention="none",
        progress=JobProgress(4, 2, "a"),
        digests={"a": "0" * 64},
        error=JobError("OUTPUT_FAILED", (("disk", "full"),)),
        deaths=2,
        hub_credential="team",
        plan=replace(PLAN, pins=(("org/llm", "c" * 40), ("org/lvlm@v1", "d" * 40))),
    )
    assert store.insert(whole) == (whole, True)
    assert store.get("a") == whole


@pytest.mark.parametrize("before", JobState)
@pytest.mark.parametrize("after", JobState)
def test_only_the_listed_transitions_are_made(store: JobStore, job: MakeJob, before: JobState, after: JobState):
    store.insert(job(state=before))
    if after in NEXT[before]:
        assert store.update("a", state=after).state is after
    else:
        with pytest.raises(ConflictError):
            store.update("a", state=after)
        assert store.get("a").state is before


def test_final_states_lead_nowhere():
    assert {state for state in JobState if state.final} == {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


def test_every_change_raises_the_revision(store: JobStore, job: MakeJob):
    store.insert(job())
    changes = [
        {"state": JobState.RUNNING},
        {"progress": JobProgress(1, 1, "a")},
        {"deaths": 1},
        {"digests": {"a": "1"}},
    ]
    assert [store.update("a", **change).revision for change in changes] == [2, 3, 4, 5]


def test_digests_add_up(store: JobStore, job: MakeJob):
    store.insert(job())
    store.update("a", digests={"a": "1"})
    assert store.update("a", digests={"b": "2"}).digests == {"a": "1", "b": "2"}


def test_a_request_id_gives_the_first_merge(store: JobStore, job: MakeJob):
    first, _ = store.insert(job("a", request_id="r"))
    store.update("a", state=JobState.RUNNING)
    again, new = store.insert(job("b", request_id="r"))
    assert (again.id, again.state, new) == (first.id, JobState.RUNNING, False)
    assert store.find_request("r", "f" * 64) == again
    with pytest.raises(UsageError, match="request_id"):
        store.insert(job("c", request_id="r", fingerprint="0" * 64))
    with pytest.raises(NotFoundError):
        store.get("b")


def test_one_of_many_at_once_gets_the_request_id(store: JobStore, job: MakeJob):
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda n: store.insert(job(f"m{n}", request_id="r")), range(16)))
    assert sum(new for _, new in made) == 1
    assert len({stored.id for stored, _ in made}) == 1


def test_concurrent_updates_all_count(store: JobStore, job: MakeJob):
    store.insert(job())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: store.update("a", digests={str(n): "x"}), range(32)))
    assert store.get("a").revision == 33
    assert len(store.get("a").digests) == 32


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
def test_pages_cover_everything_once_newest_first(store: JobStore, job: MakeJob, size: int):
    for n in range(7):
        store.insert(job(f"m{n}", created=100 + n // 2))  # some at the same moment
    found: list[str] = []
    token = ""
    while True:
        jobs, token = store.page(size, token)
        found += [one.id for one in jobs]
        assert len(jobs) <= size
        if not token:
            break
    assert found == [f"m{n}" for n in (6, 5, 4, 3, 2, 1, 0)]


@pytest.mark.parametrize("token", ["x", "!!", "YWJj", "MS8yLzM="])
def test_foreign_page_tokens_are_refused(store: JobStore, token: str):
    with pytest.raises(UsageError, match="page_token"):
        store.page(10, token)


def test_unfinished_merges_come_oldest_first(store: JobStore, job: MakeJob):
    for n, state in enumerate([JobState.RUNNING, JobState.SUCCEEDED, JobState.QUEUED, JobState.CANCELLED]):
        store.insert(job(f"m{n}", state=state, created=n))
    assert [one.id for one in store.unfinished()] == ["m0", "m2"]


def test_uploads_are_in_use_while_a_merge_may_read_them(store: JobStore, job: MakeJob):
    def uses(name: str) -> PlanSummary:
        return replace(PLAN, uploads=(name,))

    store.insert(job("a", state=JobState.SUCCEEDED, plan=uses("done")))
    store.insert(job("b", state=JobState.SUCCEEDED, plan=uses("on demand"), retention="none"))
    store.insert(job("c", plan=uses("queued")))
    assert store.uploads_in_use() == {"on demand", "queued"}


def test_only_ended_merges_can_be_deleted(store: JobStore, job: MakeJob):
    store.insert(job(request_id="r"))
    with pytest.raises(ConflictError, match="cancel it first"):
        store.delete("a")
    store.update("a", state=JobState.CANCELLED)
    store.delete("a")
    with pytest.raises(NotFoundError):
        store.delete("a")
    assert store.insert(job("b", request_id="r"))[1], "the request id is free again"


def test_a_merge_goes_with_its_publications_and_not_before_they_have_ended(store: JobStore, job: MakeJob):
    store.insert(job(state=JobState.SUCCEEDED))
    published = PublicationStore(store._engine)
    moment, destination = now(), Destination("org/name")
    one = Publication("p", "a", PublicationState.RUNNING, 1, moment, moment, "f", destination, "", False)
    published.insert(one)
    with pytest.raises(ConflictError, match="merges/a/publications/p: is being published"):
        store.delete("a")
    published.update("p", state=PublicationState.CANCELLED)
    store.delete("a")
    with pytest.raises(NotFoundError):
        published.get("a", "p")
