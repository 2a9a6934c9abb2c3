"""`safegraft serve` with a Hub and a web server: what it reads for its clients, and that no token gets out of it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download
from scripted_server import ScriptedServer, scripted_server
from testhub import Hub, point_at

from safegraft.errors import InputError, SafegraftError, UsageError
from safegraft.rpc.client import Client

TOKEN = "hf_S3cretTokenThatNobodyMaySee"


@contextlib.contextmanager
def serving(folder: Path, environment: dict[str, str], *arguments: str) -> Iterator[str]:
    """The server as its owner starts it; yields its address. `folder` gets data and log."""
    folder.mkdir()
    command = [sys.executable, "-W", "error", "-m", "safegraft", "serve", "--listen", "127.0.0.1:0"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [*command, "--data", str(folder / "data"), *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**clean, "HF_HOME": str(folder / "home"), **environment},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("listening on "), (folder / "log").read_text()
            yield line.split()[-1]
        finally:
            process.terminate()
            assert process.wait(20) == 0


@pytest.fixture(scope="module")
def hub(root: Path) -> Iterator[Hub]:
    with Hub.start(token=TOKEN) as hub:
        hub.add_model("org/llm", root / "big-llm")
        hub.add_model("org/lvlm", root / "big-lvlm")
        hub.add_model("org/private", root / "big-llm", private=True)
        hub.add_model("other/llm", root / "llm")
        yield hub


@pytest.fixture(scope="module")
def web(root: Path) -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        for path in (root / "big-lvlm").iterdir():
            server.files[f"/models/lvlm/{path.name}"] = path.read_bytes()
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("remote") / "server"


@pytest.fixture(scope="module")
def target(folder: Path, hub: Hub, web: ScriptedServer, root: Path) -> Iterator[str]:
    token = folder.with_name("token")
    token.write_text(TOKEN)
    token.chmod(0o600)
    environment = {**hub.environment(), "HF_TOKEN": ""}
    arguments = ["--models", str(root), "--hub", "org/*", "--hub-credential", f"team={token}", "--publish-to", "team/*"]
    with serving(folder, environment, *arguments, "--url", web.url("/models")) as target:
        yield target


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    with Client(target, patience=10.0) as client:
        yield client


def linear(llm: str, lvlm: str, share: float = 0.25) -> dict[str, Any]:
    models = [
        {"model": llm, "parameters": {"weight": share}},
        {"model": lvlm, "parameters": {"weight": 1 - share}},
    ]
    return {"models": models, "merge_method": "linear"}


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_clients_are_told_what_may_be_read(client: Client, web: ScriptedServer):
    info = client.server_info()
    assert list(info.hub_models) == ["org/*"]
    assert list(info.url_prefixes) == [web.url("/models")]
    assert list(info.hub_credentials) == ["team"]
    assert list(info.publish_to) == ["team/*"]


def test_two_models_of_the_hub_are_merged_like_two_folders(client: Client, hub: Hub, folder: Path, tmp_path: Path):
    client.merge(linear("org/llm", "org/lvlm@main"), tmp_path / "hub")
    manifest = (tmp_path / "hub" / "safegraft.json").read_text()
    assert all(f"{name}@{hub.repository(name).head}" in manifest for name in ("org/llm", "org/lvlm"))
    client.merge(linear("big-llm", "big-lvlm"), tmp_path / "folders")
    assert weights(tmp_path / "hub") == weights(tmp_path / "folders")
    assert not list(folder.rglob("models--*")), "nothing of them is kept"


def test_a_model_below_a_url_is_merged(client: Client, web: ScriptedServer, tmp_path: Path):
    client.merge(linear("org/llm", web.url("/models/lvlm")), tmp_path / "web")
    client.merge(linear("big-llm", "big-lvlm"), tmp_path / "folders")
    assert weights(tmp_path / "web") == weights(tmp_path / "folders")


def test_a_private_model_needs_the_credential_in_the_request(client: Client, tmp_path: Path):
    recipe = linear("org/private", "big-lvlm")
    for use in (client.plan, client.create):
        with pytest.raises(InputError, match=r"or it is private: .* \(hub_credential; it has team\)"):
            use(recipe)
        with pytest.raises(UsageError, match="tema"):
            use(recipe, hub_credential="tema")
    client.plan(recipe, hub_credential="team")
    merge = client.create(recipe, hub_credential="team")
    client.pull(merge.id, tmp_path / "private")
    client.merge(linear("big-llm", "big-lvlm"), tmp_path / "folders")
    assert weights(tmp_path / "private") == weights(tmp_path / "folders")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("other/llm", r"reads org/\*; its owner can allow more with --hub"),
        ("s3://bucket/x", "reads those below .*/models; its owner can allow more with --url"),
        ("file:///etc/passwd", "is no|cannot be read|lies under none"),
        ("big-llm+other/lora", r"reads org/\*"),
    ],
)
def test_what_is_not_allowed_is_refused_with_what_is(client: Client, model: str, words: str):
    with pytest.raises(InputError, match=words):
        client.plan(linear(model, "big-lvlm"))


@pytest.mark.parametrize("retention", ["keep", "none"])
def test_a_branch_that_moves_changes_no_merge_that_was_created(
    client: Client, hub: Hub, root: Path, tmp_path: Path, retention: Any
):
    name = f"org/moving-{retention}"
    hub.add_model(name, root / "big-llm")
    recipe = linear(name, "org/lvlm")
    before = client.plan(recipe)["digest"]
    merge = client.create(recipe, retention=retention)
    (tmp_path / "new").mkdir()
    for path in (root / "big-llm").iterdir():
        shutil.copy(path, tmp_path / "new" / path.name)
    content = bytearray((tmp_path / "new" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "new" / "model.safetensors").write_bytes(content)
    hub.add_model(name, tmp_path / "new", message="move on")
    client.plan(linear("llm", "lvlm"))  # so that no worker has the first plan at hand
    client.pull(merge.id, tmp_path / "out")
    client.merge(linear("big-llm", "big-lvlm"), tmp_path / "folders")
    assert weights(tmp_path / "out") == weights(tmp_path / "folders")
    assert client.plan(recipe)["digest"] != before, "a new plan means the branch as it is now"


def test_offline_a_server_merges_what_its_cache_holds(
    hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    point_at(hub, monkeypatch, tmp_path / "cache", token=False)
    snapshot_download("org/llm")
    environment = {**hub.environment(), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    hub.clear_traffic()
    with (
        serving(tmp_path / "server", environment, "--models", str(root), "--hub", "org/*") as target,
        Client(target, patience=10.0) as client,
    ):
        client.merge(linear("org/llm", "big-lvlm"), tmp_path / "out")
        client.merge(linear("big-llm", "big-lvlm"), tmp_path / "folders")
        with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
            client.plan(linear("org/private", "big-lvlm"))
    assert weights(tmp_path / "out") == weights(tmp_path / "folders")
    assert not len(hub.traffic)


def test_the_token_leaves_its_file_for_the_hub_alone(client: Client, folder: Path, hub: Hub, tmp_path: Path):
    """After all of the above and some failures: not in answers, errors, results, the database, logs or the cache."""
    recipe = linear("org/private", "org/lvlm")
    said = [str(client.server_info()), json.dumps(client.plan(recipe, hub_credential="team"))]
    merge = client.create(recipe, hub_credential="team", retention="none")
    client.pull(merge.id, tmp_path / "out")
    said += [str(client.get(merge.id)), *map(str, client.list())]
    for model in ("org/missing", "org/private@nowhere", "org/private+org/llm", "other/llm"):
        with pytest.raises(SafegraftError) as caught:
            client.plan(linear(model, "org/lvlm"), hub_credential="team")
        said.append(str(caught.value))
    assert any(one.authorized for one in hub.traffic.matching("org/private")), "it has been used"
    assert not any(one.authorized for one in hub.traffic if one.host == "127.0.0.1"), "the CDN gets no token"
    assert not any(TOKEN in text for text in said)
    for path in (*folder.rglob("*"), *(tmp_path / "out").rglob("*")):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
