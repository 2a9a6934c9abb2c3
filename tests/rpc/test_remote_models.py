"""What a server reads from the Hub and from URLs: what its owner allows, in the name of whom the request says."""

import pickle
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download
from scripted_server import Asked, Reply, ScriptedServer, scripted_server
from testhub import Fault, Hub, point_at

from safegraft.errors import CheckpointError, SafegraftError, UsageError
from safegraft.rpc.models import ModelRoot, Models
from safegraft.rpc.remote_models import RemoteModels
from safegraft.rpc.remote_policy import HubCredential

COMMIT = re.compile(r"[0-9a-f]{40}")


@pytest.fixture
def hub(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process is pointed at, without a login."""
    with Hub.start() as hub:
        hub.add_model("org/llm", root / "llm")
        hub.add_model("org/private", root / "llm", private=True)
        hub.add_model("org/gated", root / "llm", gated=True)
        hub.add_model("other/llm", root / "llm")
        point_at(hub, monkeypatch, tmp_path / "cache", token=False)
        yield hub


def hub_models(*patterns: str, **more: Any) -> Models:
    return Models((), remote=RemoteModels(patterns, **more))


@pytest.fixture
def credential(hub: Hub, tmp_path: Path) -> HubCredential:
    file = tmp_path / "token"
    file.write_text(hub.token)
    file.chmod(0o600)
    return HubCredential.parse(f"team={file}")


# -- the Hub --------------------------------------------------------------------------------------


def test_a_model_of_the_hub_is_read_by_range_and_goes_by_its_commit(hub: Hub, root: Path):
    hub.add_model("org/big", root / "big-llm")
    size = (root / "big-llm" / "model.safetensors").stat().st_size
    checkpoint = hub_models("org/*").open("org/big@main")
    assert checkpoint.name == f"org/big@{hub.repository('org/big').head}"
    assert hub.bytes_sent("safetensors$") < size / 5
    name, tensor = next(iter(checkpoint.tensors.items()))
    buffer = bytearray(tensor.nbytes)
    checkpoint.read_into(tensor, 0, memoryview(buffer))
    local = Models((ModelRoot.parse(str(root)),)).open("big-llm")
    expected = bytearray(tensor.nbytes)
    local.read_into(local.tensors[name], 0, memoryview(expected))
    assert buffer == expected
    assert checkpoint.identity.digest == local.identity.digest
    checkpoint.close()
    local.close()


@pytest.mark.parametrize(
    "reference",
    [
        "other/llm",
        "other/llm@main",
        "Org/llm",
        "org/llm+other/lora",
        "other/llm+org/lora",
        "org/llm@main+other/lora@main",
    ],
)
def test_what_no_pattern_allows_is_refused_as_model_and_as_adapter(hub: Hub, reference: str):
    with pytest.raises(CheckpointError, match=r"of the Hugging Face Hub this server reads org/\*; .* --hub"):
        hub_models("org/*").open(reference)
    refused = re.findall(r"other/\w+|Org/\w+", reference)
    assert not [one for name in refused for one in hub.traffic.matching(name)], "the Hub is not even asked"


def test_by_default_nothing_of_the_hub_is_read(hub: Hub):
    with pytest.raises(CheckpointError, match="of the Hugging Face Hub this server reads nothing"):
        Models(()).open("org/llm")
    assert not len(hub.traffic)


@pytest.mark.parametrize(
    "reference", ["org/llm@../../etc", "org/llm@-x", "org/llm@a b", "org/llm@" + "a" * 300, "org/llm@refs/../x"]
)
def test_a_revision_that_is_none_is_not_sent(hub: Hub, reference: str):
    with pytest.raises(CheckpointError, match="no branch, tag or commit"):
        hub_models("*").open(reference)
    assert not len(hub.traffic)


def test_a_path_in_a_root_comes_first(hub: Hub, root: Path, tmp_path: Path):
    shutil.copytree(root / "llm", tmp_path / "models" / "org" / "llm")
    models = Models((ModelRoot.parse(str(tmp_path / "models")),), remote=RemoteModels(("*",)))
    checkpoint = models.open("org/llm")
    assert checkpoint.name == "org/llm"
    checkpoint.close()
    with pytest.raises(CheckpointError, match="a folder has none"):
        models.open("org/llm@main")
    assert not len(hub.traffic)
    models.open("other/llm").close()
    assert len(hub.traffic)


def test_a_private_model_is_read_by_a_named_credential_and_looks_missing_without(hub: Hub, credential: HubCredential):
    models = hub_models("*", credentials=(credential,))
    models.open("org/private", "team").close()
    messages: list[str] = []
    for name in ("org/private", "org/missing"):
        with pytest.raises(CheckpointError) as caught:
            models.open(name)
        messages.append(str(caught.value).replace(name, "NAME"))
    assert messages[0] == messages[1], "whether a private model is there is not told"
    assert "hub_credential; it has team" in messages[0]
    assert "hf auth login" not in messages[0]
    with pytest.raises(UsageError, match=r"no credential 'tema'; it has team$"):
        models.open("org/private", "tema")
    with pytest.raises(UsageError, match="it has none, and its owner can add some"):
        hub_models("*").access("team")


def test_a_credential_does_not_widen_what_is_allowed(hub: Hub, credential: HubCredential):
    with pytest.raises(CheckpointError, match="this server reads other/"):
        hub_models("other/*", credentials=(credential,)).open("org/private", "team")
    assert not len(hub.traffic)


def test_the_servers_own_login_is_used_unless_it_is_anonymous(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, credential: HubCredential
):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub_models("*").open("org/private").close()
    models = hub_models("*", anonymous=True, credentials=(credential,))
    with pytest.raises(CheckpointError, match="nothing of this name, or it is private"):
        models.open("org/private")
    models.open("org/private", "team").close()
    hub.clear_traffic()
    models.open("org/llm").close()
    assert not any(request.authorized for request in hub.traffic)


def test_a_gated_model_needs_somebody_with_access(hub: Hub, credential: HubCredential):
    models = hub_models("*", credentials=(credential,))
    with pytest.raises(CheckpointError, match="gated") as caught:
        models.open("org/gated")
    assert "hub_credential" in str(caught.value)
    models.open("org/gated", "team").close()


def test_no_error_and_no_pickle_shows_the_token(hub: Hub, credential: HubCredential):
    models = hub_models("*", credentials=(credential,), urls=("http://127.0.0.1:9/x",))
    assert hub.token not in repr(models)
    assert hub.token not in repr(models.access("team"))
    assert hub.token.encode() not in pickle.dumps(models)
    assert pickle.loads(pickle.dumps(models)) == models
    hub.faults.add(Fault.unavailable(times=None, status=400))
    for name in ("org/missing", "org/private"):
        with pytest.raises(SafegraftError) as caught:
            models.open(name, "team")
        assert hub.token not in str(caught.value)


def test_an_adapter_comes_from_the_hub_or_its_model_does(hub: Hub, root: Path, tmp_path: Path, write_lora: Any):
    adapter = write_lora(tmp_path / "lora", root / "llm")
    hub.add_model("org/lora", adapter)
    models = Models((ModelRoot.parse(f"{root}=r"), ModelRoot.parse(f"{tmp_path}=t")), remote=RemoteModels(("org/*",)))
    identities: set[str] = set()
    for reference in ("r/llm+t/lora", "org/llm+t/lora", "r/llm+org/lora@main", "org/llm@main+org/lora"):
        checkpoint = models.open(reference)
        assert checkpoint.name == reference
        identities.add(checkpoint.identity.digest)
        checkpoint.close()
    assert len(identities) == 1, "the same weights, wherever they lie"
    with pytest.raises(CheckpointError, match="is a PEFT adapter, not a model"):
        models.open("org/lora")
    with pytest.raises(CheckpointError, match="is a model, not an adapter"):
        models.open("r/llm+org/llm")


# -- pins -----------------------------------------------------------------------------------------


def test_with_the_same_pins_a_branch_that_has_moved_means_the_same_commit(hub: Hub, root: Path):
    models = hub_models("*")
    pins: dict[str, str] = {}
    first = models.open("org/llm", pins=pins)
    assert pins == {"org/llm": hub.repository("org/llm").head}
    hub.add_model("org/llm", root / "big-llm", message="move on")
    again, moved = models.open("org/llm", pins=pins), models.open("org/llm")
    assert again.name == first.name
    assert again.identity == first.identity
    assert moved.name != first.name
    for one in (first, again, moved):
        one.close()


def test_one_plan_means_one_commit_by_one_name(hub: Hub, root: Path, tmp_path: Path, write_lora: Any):
    hub.add_model("org/lora", write_lora(tmp_path / "lora", root / "llm"))
    models, pins = hub_models("*"), dict[str, str]()
    alone = models.open("org/llm@main", pins=pins)
    hub.add_model("org/llm", root / "big-llm", message="move on")
    joined = models.open("org/llm@main+org/lora", pins=pins)
    assert joined.sources[0] == alone.name
    assert list(pins) == ["org/llm@main", "org/lora"]
    assert all(COMMIT.fullmatch(commit) for commit in pins.values())
    alone.close()
    joined.close()


# -- the cache ------------------------------------------------------------------------------------


def test_with_the_cache_a_model_is_brought_whole_once(hub: Hub, root: Path, tmp_path: Path):
    hub.add_model("org/big", root / "big-llm")
    models = hub_models("*", cache=True)
    first = models.open("org/big")
    assert list((tmp_path / "cache").rglob("model.safetensors"))
    hub.clear_traffic()
    again = models.open("org/big")
    assert again.identity == first.identity
    assert hub.bytes_sent("safetensors$") < 100_000, "its header at most"
    first.close()
    again.close()


def test_what_is_cached_is_not_read_without_asking_the_hub_whether_it_may_be(hub: Hub, credential: HubCredential):
    models = hub_models("*", cache=True, credentials=(credential,))
    for name in ("org/private", "org/gated"):
        pins: dict[str, str] = {}
        models.open(name, "team", pins).close()
        for reference in (name, f"{name}@{pins[name]}"):
            with pytest.raises(CheckpointError, match=r"private|gated"):
                models.open(reference)
            with pytest.raises(CheckpointError, match=r"private|gated"):
                hub_models("*").open(reference)


def test_offline_the_cache_is_read_under_the_same_rules(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    for name in ("org/llm", "other/llm"):
        snapshot_download(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.clear_traffic()
    models, pins = hub_models("org/*"), dict[str, str]()
    checkpoint = models.open("org/llm", pins=pins)
    assert checkpoint.name == f"org/llm@{hub.repository('org/llm').head}"
    assert pins == {"org/llm": hub.repository("org/llm").head}
    checkpoint.close()
    with pytest.raises(CheckpointError, match="this server reads org/"):
        models.open("other/llm")
    for missing in ("org/elsewhere", "org/llm@elsewhere"):
        with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE is set; .*Hugging Face cache"):
            models.open(missing)
    with pytest.raises(CheckpointError, match="0" * 40):
        models.open("org/llm", pins={"org/llm": "0" * 40})
    with pytest.raises(CheckpointError, match="reads what is public"):
        hub_models("*", anonymous=True).open("org/llm")
    with pytest.raises(CheckpointError, match="no branch, tag or commit"):
        models.open("org/llm@../../../models--other--llm/refs/main")
    assert not len(hub.traffic)


# -- URLs -----------------------------------------------------------------------------------------


@pytest.fixture
def web(root: Path) -> Iterator[ScriptedServer]:
    """Serves the model root below /models, and the same below /secret."""
    with scripted_server() as server:
        for path in root.rglob("*"):
            if path.is_file():
                for above in ("/models", "/secret"):
                    server.files[f"{above}/{path.relative_to(root)}"] = path.read_bytes()
        yield server


@pytest.fixture
def trap() -> Iterator[ScriptedServer]:
    """What must never be connected to."""
    with scripted_server() as server:
        yield server
        assert not server.connections


def port(server: ScriptedServer) -> str:
    return server.url().rpartition(":")[2]


def redirect(server: ScriptedServer, path: str, location: str) -> None:
    def answer(asked: Asked) -> Reply:
        return Reply(302, {"Location": location}) if asked.path == path else server.usual(asked)

    server.otherwise = answer


def test_a_model_below_an_allowed_url_is_read(web: ScriptedServer, root: Path, tmp_path: Path, write_lora: Any):
    for file in write_lora(tmp_path / "lora", root / "llm").iterdir():
        web.files[f"/loras/lora/{file.name}"] = file.read_bytes()
    models = Models((), remote=RemoteModels(urls=(web.url("/models/"), web.url("/loras"))))
    checkpoint = models.open(web.url("/models/llm"))
    assert checkpoint.name == web.url("/models/llm")
    joined = models.open(f"{web.url('/models/llm')}+{web.url('/loras/lora')}")
    assert joined.tensors == checkpoint.tensors
    assert joined.identity != checkpoint.identity
    checkpoint.close()
    joined.close()


HOSTILE = [
    "http://127.0.0.1:{trap}/models/llm",
    "http://localhost:{port}/models/llm",
    "http://LOCALHOST:{trap}/models/llm",
    "http://127.0.0.1/models/llm",
    "https://127.0.0.1:{port}/models/llm",
    "http://127.1:{trap}/models/llm",
    "http://2130706433:{trap}/models/llm",
    "http://0x7f000001:{trap}/models/llm",
    "http://0177.0.0.1:{trap}/models/llm",
    "http://0:{trap}/models/llm",
    "http://[::1]:{trap}/models/llm",
    "http://[::ffff:127.0.0.1]:{trap}/models/llm",
    "http://[::ffff:7f00:1]:{port}/models/llm",
    "http://127.0.0.1.:{trap}/models/llm",
    "http://127.0.0.1:{port}.evil.example/models/llm",
    "http://127.0.0.1:{port}@127.0.0.1:{trap}/models/llm",
    "http://user:SECRET@127.0.0.1:{port}/models/llm",
    "http://127.0.0.1:{port}\\@127.0.0.1:{trap}/models/llm",
    "http://127.0.0.1:{trap}#@127.0.0.1:{port}/models/llm",
    "http://127.0.0.1:{trap}?@127.0.0.1:{port}/models/llm",
    "http://127.0.0.1:{port}/models/llm?sig=SECRET",
    "http://127.0.0.1:{port}/models/../secret",
    "http://127.0.0.1:{port}/models/%2e%2e/secret",
    "http://127.0.0.1:{port}/models/%2E./secret",
    "http://127.0.0.1:{port}/models/..%2fsecret",
    "http://127.0.0.1:{port}/models/%252e%252e/secret",
    "http://127.0.0.1:{port}/models//secret",
    "http://127.0.0.1:{port}/models\\..\\secret",
    "http://127.0.0.1:{port}/models%2f..%2fsecret",
    "http://127.0.0.1:{port}/models-secret/llm",
    "http://127.0.0.1:{port}/Models/llm",
    "http://127.0.0.1:{port}/secret",
    "http://127.0.0.1:{port}",
    "http://127.0.0.1:{port}/models\n/../secret",
    "http://127.0.0.1:{port}/models\r\nHost: evil/llm",
    " http://127.0.0.1:{port}/models/llm",
    "http:/127.0.0.1:{trap}/models/llm",
    "http:127.0.0.1:{trap}/models/llm",
    "//127.0.0.1:{trap}/models/llm",
    "http:\\\\127.0.0.1:{trap}\\models\\llm",
    "http://127.0.0.1:{port}/models/llm::http://127.0.0.1:{trap}/x",
    "file://{root}/llm",
    "file:{root}/llm",
    "file://localhost{root}/llm",
    "local://{root}/llm",
    "{root}/llm",
    "memory://models/llm",
    "dir://{root}/llm",
    "simplecache::file://{root}/llm",
    "filecache::http://127.0.0.1:{trap}/models/llm",
    "blockcache::s3://bucket/llm",
    "zip://llm::file://{root}/llm.zip",
    "reference://::file://{root}/llm",
    "github://org:name@main/llm",
    "ftp://127.0.0.1:{trap}/models/llm",
    "sftp://127.0.0.1:{trap}/models/llm",
    "smb://127.0.0.1:{trap}/models/llm",
    "webhdfs://127.0.0.1:{trap}/models/llm",
    "jupyter://127.0.0.1:{trap}/models/llm",
    "hf://org/llm",
    "s3://other/llm",
    "s3://bucket-other/llm",
    "s3://bucket/models/../secret",
    "s3://bucket/models-other/llm",
    "s3://key:SECRET@bucket/models/llm",
    "s3://bucket/models/llm::file://{root}/llm",
    "s3a://bucket/models/llm",
    "gs://bucket/models/llm",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_reference_reaches_a_place_that_the_owner_has_not_allowed(
    hostile: str, web: ScriptedServer, trap: ScriptedServer, root: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not the network, not a file: nothing is looked up, connected to or opened."""
    looked_up: list[Any] = []
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: looked_up.append(args) or real(*args, **more))
    allowed = (web.url("/models"), "s3://bucket/models/")
    models = Models((ModelRoot.parse(str(root)),), remote=RemoteModels(("org/*",), urls=allowed))
    reference = hostile.format(port=port(web), trap=port(trap), root=root)
    for one in (reference, f"llm+{reference}", f"{reference}+org/lora", f"llm+{reference}+x"):
        with pytest.raises(CheckpointError) as caught:
            models.open(one)
        assert "SECRET" not in str(caught.value)
    assert not web.connections
    assert not looked_up


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{trap}/models/llm/config.json",
        "//127.0.0.1:{trap}/models/llm/config.json",
        "http://localhost:{trap}/models/llm/config.json",
        "http://[::1]:{trap}/x",
        "/secret/llm/config.json",
        "../../secret/llm/config.json",
        "/models/../secret/llm/config.json",
        "/models/%2e%2e/secret/llm/config.json",
        "file:///etc/passwd",
        "http://user:SECRET@127.0.0.1:{trap}/x?sig=SECRET",
    ],
)
def test_a_redirect_leads_nowhere_else(location: str, web: ScriptedServer, trap: ScriptedServer):
    redirect(web, "/models/llm/config.json", location.format(trap=port(trap)))
    with pytest.raises(CheckpointError) as caught:
        Models((), remote=RemoteModels(urls=(web.url("/models"),))).open(web.url("/models/llm"))
    assert "SECRET" not in str(caught.value)
    assert not [one.path for one in web.asked if "secret" in one.path]


def test_a_redirect_within_what_is_allowed_is_followed(web: ScriptedServer):
    redirect(web, "/models/llm/config.json", web.url("/models/big-llm/config.json"))
    Models((), remote=RemoteModels(urls=(web.url("/models"),))).open(web.url("/models/llm")).close()
    assert [one for one in web.asked if one.path == "/models/big-llm/config.json"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.192",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:10.1.2.3",
        "64:ff9b::10.1.2.3",
        "64:ff9b:1::1",
        "2002:a01:203::",
        "fe80::1%lo",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
    ],
)
def test_a_name_that_leads_to_an_inner_address_is_refused(
    address: str, web: ScriptedServer, monkeypatch: pytest.MonkeyPatch
):
    """Whoever holds an allowed name's DNS gets nothing of the server's own network, be one of many addresses good."""

    def lookup(host: str, where: int, *args: Any, **more: Any) -> Any:
        assert host == "models.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, where)) for one in ("93.184.216.34", address)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(socket, "create_connection", lambda *args, **more: pytest.fail("it connects"))
    url = web.url("/models", host="models.example")
    with pytest.raises(CheckpointError, match="address inside a network"):
        Models((), remote=RemoteModels(urls=(url,))).open(f"{url}/llm")
    assert not web.connections


def test_a_refused_url_is_told_what_is_allowed():
    models = Models((), remote=RemoteModels(urls=("s3://bucket/models/", "https://host/x")))
    with pytest.raises(CheckpointError, match=r"reads those below s3://bucket/models/, https://host/x; .* --url"):
        models.open("s3://other/llm")
    with pytest.raises(CheckpointError, match="of URLs this server reads none"):
        Models(()).open("https://host/x/llm")
