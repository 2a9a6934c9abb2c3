"""An LVLM's way from the Hub and back, by the command line, with everything going wrong that can."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from testhub import Fault, Hub, point_at

import safegraft
import safegraft_trainers.lab
from safegraft.cli import main
from safegraft.engine.plan import make_plan
from safegraft.local import open_model
from safegraft.methods import Registry
from safegraft.recipe import read_recipe
from safegraft.testing import tiny_llm, tiny_lvlm

SHIPPED = Path(safegraft_trainers.lab.__file__).parent / "checkpoints"
HOST, LLM, MERGED = "team/adapted-lvlm", "team/aligned-llm", "team/merged"
WEIGHTS = "model.safetensors"
SHARD = 45_000  # bytes
COMPILED = (".nbi", ".nbc")  # methods' machine code, which is kept beside and has no weights in it
PUSH = ["push", "recipe.yml", MERGED, "--unevaluated", "--max-shard-size", str(SHARD), "--scratch", "scratch"]


def recipe_of(host: str = HOST, llm: str = LLM, **more: Any) -> dict[str, Any]:
    models = [{"model": host, "parameters": {"weight": 0.7}}, {"model": llm, "parameters": {"weight": 0.3}}]
    return {"merge_method": "linear", "models": models, **more}


@dataclass
class Disk:
    """Measures at every request that reaches the Hub how much lies in the folder where commands work."""

    folder: Path
    highest: int = 0
    files: Sequence[tuple[str, int]] = ()  # what lay there at that time

    def measure(self, _: object) -> bool:
        found: list[tuple[str, int]] = []
        for folder, _, names in os.walk(self.folder):
            for path in [Path(folder, name) for name in names if not name.endswith(COMPILED)]:
                with contextlib.suppress(FileNotFoundError):  # it is gone since
                    found.append((path.name, path.lstat().st_size))
        size = sum(size for _, size in found)
        if size > self.highest:
            self.highest, self.files = size, found
        return False


@dataclass
class There:
    """A Hub with the two models, and a folder with a recipe that names them."""

    hub: Hub
    folder: Path
    disk: Disk
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        assert self.hub.token not in out + err
        assert "signature" not in (out + err).lower()
        return code, out, err

    def write(self, recipe: dict[str, Any]) -> None:
        (self.folder / "recipe.yml").write_text(json.dumps(recipe))


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    work = tmp_path / "work"
    work.mkdir()
    with Hub.start(tmp_path / "hub") as hub:
        point_at(hub, monkeypatch, work / "hf-cache", token=hub.token)
        monkeypatch.setattr("safegraft.hub.retrying.FIRST_PAUSE", 0.01)
        monkeypatch.setenv("SAFEGRAFT_CACHE", str(work / "cache"))
        for name in (HOST, LLM):
            hub.add_model(name, SHIPPED / name.rpartition("/")[2])
        monkeypatch.chdir(work)
        disk = Disk(work)
        hub.faults.add(Fault.delayed(None, when=disk.measure, seconds=0))
        one = There(hub, work, disk, capsys)
        one.write(recipe_of())
        yield one


def expected() -> dict[str, torch.Tensor]:
    """The merged tensors, from folders."""
    with safegraft.open(recipe_of(str(SHIPPED / "adapted-lvlm"), str(SHIPPED / "aligned-llm"))) as merged:
        return dict(merged.tensors)


def require_published(there: There) -> None:
    """Loaded by transformers it is the merge, and verify agrees that it is."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    code, out, _ = there.run("verify", MERGED, "--recompute")
    assert code == 0, out
    model = AutoModelForImageTextToText.from_pretrained(MERGED, dtype="auto")
    AutoProcessor.from_pretrained(MERGED)
    merged = expected()
    loaded = model.state_dict()
    for short in ("lm_head.weight", "layers.1.mlp.down_proj.weight", "linear_1.weight", "pre_layrnorm.weight"):
        (ours,) = [tensor for name, tensor in merged.items() if name.endswith(short)]
        (theirs,) = [tensor for name, tensor in loaded.items() if name.endswith(short)]
        assert torch.equal(ours, theirs)


PASSING = {
    "nothing": [],
    "503": [Fault.unavailable(4)],
    "503 to uploads": [
        Fault.unavailable(2, r"/upload/"),
        Fault.unavailable(1, r"\.git/info/lfs"),
        Fault.unavailable(1, "/commit/"),
    ],
    "dropped before the answer": [Fault.dropped(2, "/cdn/"), Fault.dropped(1, "/api/models")],
    "dropped in the middle": [Fault.dropped(3, "/cdn/", after=1000)],
    "a body cut short": [Fault.truncated(2, "/cdn/", after=100)],
    "rate limit": [Fault.rate_limited(2, "/cdn/", retry_after=0), Fault.rate_limited(1, "/api/", retry_after=1)],
    "expired links": [Fault.expired(2, "/cdn/")],
    "slow": [Fault.slow(3, "/cdn/", bytes_per_second=2_000_000), Fault.delayed(2, "/api/", seconds=0.1)],
    "an upload that breaks": [Fault.broken_upload(2, "/upload/")],
    "a commit whose answer is lost": [Fault.lost_answer(1, "/commit/")],
    "a commit whose connection is lost": [Fault.lost_answer(1, "/commit/", status=0)],
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", PASSING)
def test_a_push_from_hub_to_hub_stands_what_passes(there: There, fault: str) -> None:
    for one in PASSING[fault]:
        there.hub.faults.add(one)
    code, _, err = there.run(*PUSH)
    assert code == 0, err
    size = (SHIPPED / "adapted-lvlm" / WEIGHTS).stat().st_size
    assert 0 < there.disk.highest < 0.2 * size, there.disk.files
    assert len(there.hub.repository(MERGED).commits) == 2  # the first is the repository's own
    require_published(there)


FAILING = {
    "somebody else commits": (Fault.stale_parent(1, "/commit/"), "run again"),
    "bytes that are not those of the hash": (Fault.flipped(None, f"aligned-llm/.*{WEIGHTS}", offset=100_000), "sha256"),
    "a gate": (Fault.gated(None, "aligned-llm"), "ask"),
    "a server that knows no ranges": (Fault.ignored_range(None, "/cdn/"), "range"),
    "an upload damaged on its way": (Fault.damaged_upload(None, "/upload/", offset=50), MERGED),
    "a Hub that stays away": (Fault.unavailable(None, "/commit/"), "again"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAILING)
def test_what_does_not_pass_leaves_nothing_to_see_and_the_next_run_continues(
    there: There, tmp_path: Path, fault: str
) -> None:
    struck, words = FAILING[fault]
    there.hub.faults.add(struck)
    code, _, err = there.run(*PUSH)
    assert code != 0
    assert words in err, err
    repository = there.hub.repositories.get(MERGED)
    if repository is not None:
        assert not [name for name in repository.files if name.endswith((".safetensors", "safegraft.json"))]
    assert not [path for path in (there.folder / "scratch").rglob("*") if path.is_file()]
    if struck.times is None:
        there.hub.faults.remove(struck)
    there.hub.clear_traffic()
    code, _, err = there.run(*PUSH)
    assert code == 0, err
    if "commit" in struck.match:
        sent = [one.path for one in there.hub.traffic.matching(r"/upload/", "PUT")]
        assert not [path for path in sent if "safetensors" in path]  # what had arrived is not sent again
    require_published(there)


def test_a_plan_reads_headers_and_small_files_and_no_byte_more(there: There) -> None:
    code, _, err = there.run("plan", "recipe.yml")
    assert code == 0, err
    headers = 0
    for name in (HOST, LLM):
        with (SHIPPED / name.rpartition("/")[2] / WEIGHTS).open("rb") as file:
            headers += 8 + int.from_bytes(file.read(8), "little")
    assert there.hub.bytes_sent(rf"/cdn/.*{WEIGHTS}") == headers


def test_only_the_ranges_that_a_merge_needs_are_moved_each_once(there: There) -> None:
    """With the host's embeddings kept, those of the LLM are nobody's business."""
    there.write(recipe_of(embeddings="host"))
    code, _, err = there.run("merge", "recipe.yml", "--out", "merged")
    assert code == 0, err
    folders = {HOST: str(SHIPPED / "adapted-lvlm"), LLM: str(SHIPPED / "aligned-llm")}
    plan = make_plan(read_recipe(recipe_of(*folders.values(), embeddings="host")), open_model, Registry.discover())
    moved_less = False
    for name, folder in folders.items():
        checkpoint = plan.checkpoints[folder]
        used = {one.tensor for task in plan.tensors for one in task.contributions if one.model == folder}
        wanted = sum(checkpoint.tensors[tensor].nbytes for tensor in used)
        header = min(tensor.offset for tensor in checkpoint.tensors.values())
        assert there.hub.bytes_sent(rf"/cdn/{name}/.*{WEIGHTS}") == header + wanted
        moved_less |= wanted < sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    plan.close()
    assert moved_less


def test_a_hub_model_and_its_copy_on_disk_give_one_plan_and_the_same_bytes(there: There) -> None:
    code, _, err = there.run("merge", "recipe.yml", "--out", "from-hub")
    assert code == 0, err
    safegraft.merge(recipe_of(str(SHIPPED / "adapted-lvlm"), str(SHIPPED / "aligned-llm")), out="from-disk")
    for ours, theirs in zip(*(sorted(Path(one).iterdir()) for one in ("from-hub", "from-disk")), strict=True):
        if ours.name not in ("README.md", "safegraft.json"):  # they name the models, and those are called otherwise
            assert ours.read_bytes() == theirs.read_bytes()


def test_whole_models_go_into_the_cache_when_asked_for_and_are_used_from_there(there: There) -> None:
    code, first, err = there.run("plan", "recipe.yml", "--hub-cache", "--json")
    assert code == 0, err
    there.hub.clear_traffic()
    code, second, err = there.run("plan", "recipe.yml", "--json")
    assert code == 0, err
    assert json.loads(first)["digest"] == json.loads(second)["digest"]
    assert there.hub.bytes_sent(WEIGHTS) == 0


# The command with a small memory for what is read ahead, so that models need not be large to be larger than that.
MEASURED = """
import sys
import safegraft.remote.window as window
window.MEMORY = 4 << 20
import safegraft.remote.checkpoint as checkpoint
from safegraft.cli import main
code = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_models(tmp_path: Path) -> None:
    peaks = [peak_of_push(tmp_path / f"{layers}-layers", layers) for layers in (4, 24)]
    assert peaks[1] - peaks[0] < 24 << 20, peaks


def peak_of_push(folder: Path, layers: int) -> int:
    """Bytes of resident memory of a push from Hub to Hub, while connections break."""
    shape = {"hidden": 256, "layers": layers}
    folder.mkdir()
    with Hub.start(folder / "hub") as hub:
        hub.add_model(HOST, tiny_lvlm(folder / "lvlm", seed=1, **shape))
        hub.add_model(LLM, tiny_llm(folder / "llm", seed=2, **shape))
        size = (folder / "llm" / WEIGHTS).stat().st_size
        for name in ("lvlm", "llm"):
            shutil.rmtree(folder / name)
        hub.faults.add(Fault.dropped(5, "/cdn/", after=500_000), Fault.unavailable(5))
        (folder / "recipe.yml").write_text(json.dumps(recipe_of()))
        command = [
            sys.executable,
            "-c",
            MEASURED,
            "push",
            "recipe.yml",
            MERGED,
            "--unevaluated",
            "--max-shard-size",
            "2MB",
        ]
        environment = {**hub.environment(folder / "home"), "SAFEGRAFT_CACHE": str(folder / "cache")}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert size > layers * 2_000_000
        return 1024 * int(done.stderr.strip().splitlines()[-1])


def in_reverse(folder: Path, out: Path) -> Path:
    """The same model, with its tensors the other way round in their file."""
    shutil.copytree(folder, out)
    content = (folder / WEIGHTS).read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:size])
    metadata, data, at = header.pop("__metadata__", None), b"", 0
    for name, entry in sorted(header.items(), key=lambda one: -one[1]["data_offsets"][0]):
        begin, end = entry["data_offsets"]
        data += content[size + begin : size + end]
        header[name] = {**entry, "data_offsets": [at, at + end - begin]}
        at += end - begin
    text = json.dumps({**({"__metadata__": metadata} if metadata else {}), **header}).encode()
    (out / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)
    return out


def test_files_that_are_read_in_another_order_are_verified_when_that_is_asked_for(
    there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safegraft.remote.checkpoint.RemoteCheckpoint.__init__.__kwdefaults__", {"memory": 60_000})
    there.hub.add_model("team/reversed-llm", in_reverse(SHIPPED / "aligned-llm", tmp_path / "reversed"))
    there.write(recipe_of(llm="team/reversed-llm"))
    there.hub.faults.add(Fault.flipped(None, f"reversed-llm/.*{WEIGHTS}", offset=100_000))
    code, _, err = there.run("merge", "recipe.yml", "--out", "unverified")
    assert code == 0
    assert "0 of 1 weight files could be compared" in err
    code, _, err = there.run("merge", "recipe.yml", "--out", "verified", "--verify-inputs")
    assert code == 3
    assert "does not have the sha256" in err
    code, _, err = there.run(*PUSH, "--verify-inputs")
    assert code == 3
    assert not [name for name in there.hub.repository(MERGED).files if name.endswith(".safetensors")]
    there.hub.faults.clear()
    code, _, err = there.run(*PUSH, "--verify-inputs")
    assert code == 0, err
    assert "could be compared" not in err
