"""A merge is refused before it begins when its result cannot be stored or listed."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safegraft.errors import OutputError, UsageError
from safegraft.rpc import creation
from safegraft.rpc.job import Job, JobProgress, JobState, PlanSummary, now
from safegraft.rpc.messages import Planned

MB = 1 << 20


def plan(megabytes: int) -> PlanSummary:
    return PlanSummary("d" * 64, "m", (("a", megabytes * MB),), (), 1, (), 0)


def job(megabytes: int, done: int, retention: Any = "keep") -> Job:
    progress = JobProgress(done * MB, 0, "a")
    return Job("x", JobState.RUNNING, 1, now(), now(), None, "f", "r", 1, 0, retention, plan(megabytes), progress)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A disk with 1000 MB free, on which one merge has 300 MB still to write."""
    monkeypatch.setattr(creation.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000 * MB))
    under_way = [job(400, 100), job(5000, 0, "none")]
    return SimpleNamespace(
        options=SimpleNamespace(data=tmp_path),
        store=SimpleNamespace(unfinished=lambda: under_way),
    )


@pytest.mark.parametrize(("megabytes", "fits"), [(600, True), (636, True), (637, False), (900, False)])
def test_a_result_must_fit_beside_those_under_way(house: Any, megabytes: int, fits: bool):
    if fits:
        creation._require_space(house, plan(megabytes))
    else:
        with pytest.raises(OutputError, match="RETENTION_NONE"):
            creation._require_space(house, plan(megabytes))


def test_absurdly_many_files_are_refused():
    async def run(count: int) -> None:
        document = {"files": [{"name": str(n), "size_bytes": 1} for n in range(count)]}

        async def answer(task: object) -> Planned:
            return Planned(document, (), 0)

        await creation.plan_recipe(SimpleNamespace(plans=SimpleNamespace(run=answer)), "recipe", 1)  # type: ignore[arg-type]

    asyncio.run(run(10_000))
    with pytest.raises(UsageError, match="max_shard_size"):
        asyncio.run(run(10_001))
