"""A sweep whose merges a server computes finds the same, writes nothing here, and leaves nothing there."""

from pathlib import Path
from typing import Any

import pytest

from safegraft import Client
from safegraft.errors import RecipeError
from safegraft_trainers.lab.server import running_server
from safegraft_trainers.lab.shipped import CHECKPOINTS
from safegraft_trainers.sweep import sweep
from safegraft_trainers.sweep.merged import LocalMerger, RemoteMerger
from safegraft_trainers.sweep.resident import Resident
from safegraft_trainers.sweep.spec import SweepSpec

pytestmark = pytest.mark.slow


def test_the_same_as_here(sweep_document: dict[str, Any], tmp_path: Path) -> None:
    served = {name: f"{CHECKPOINTS.name}/{name}" for name in sweep_document["models"]}
    broken = [{"method": "slerp", "strengths": [7]}]
    document = sweep_document | {"methods": ["linear", *broken]}
    with running_server([CHECKPOINTS], tmp_path / "data", tmp_path / "log") as server, Client(server.address) as client:
        there = sweep(SweepSpec.load(document | {"models": served}), client=client)
        assert list(client.list()) == []
        with RemoteMerger(client).open(
            {"merge_method": "passthrough", "models": [{"model": served["aligned-llm"]}]}
        ) as merge:
            remote = Resident().load(merge, "x").model.state_dict()
        with pytest.raises(RecipeError), RemoteMerger(client).open({"merge_method": "nothing"}):
            pass
    here = sweep(SweepSpec.load(document))
    for one, other in zip(there.candidates, here.candidates, strict=True):
        assert (one.name, one.state) == (other.name, other.state)
        assert (
            [answer.text for answer in one.dev.answers] == [answer.text for answer in other.dev.answers]
            if one.dev
            else True
        )
    assert [one.name for one in there.front] == [one.name for one in here.front]
    assert there.hypervolume == here.hypervolume
    with LocalMerger(1).open(
        {"merge_method": "passthrough", "models": [{"model": str(CHECKPOINTS / "aligned-llm")}]}
    ) as merge:
        local = Resident().load(merge, "x").model.state_dict()
    assert all(bool((remote[name] == tensor).all()) for name, tensor in local.items())
