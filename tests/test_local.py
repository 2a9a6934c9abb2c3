"""Model references on this machine: folders, the Hugging Face cache, and what is not there."""

from pathlib import Path
from typing import Any

import pytest

from safegraft.errors import CheckpointError
from safegraft.local import open_model
from safegraft.testing import tiny_llm

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_folder_goes_by_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llm(tmp_path / "llm")
    monkeypatch.chdir(tmp_path)
    with_dot = open_model("./llm")
    assert with_dot.name == "./llm"
    with_dot.close()


def test_a_model_in_the_hub_cache_goes_by_its_name_and_commit(tmp_path: Path) -> None:
    folder = tiny_llm(tmp_path / "models--org--name" / "snapshots" / COMMIT)
    checkpoint = open_model(str(folder))
    assert checkpoint.name == f"org/name@{COMMIT}"
    checkpoint.close()


@pytest.mark.parametrize("reference", ["~no-such-user-here/llm", "x" * 300, "nul\0"])
def test_what_cannot_even_be_looked_up(reference: str) -> None:
    with pytest.raises(CheckpointError):
        open_model(reference)


@pytest.mark.parametrize(
    ("reference", "advice"),
    [
        ("nowhere", "relative paths start at the current directory"),
        ("org/name", "hf download org/name"),
        ("./org/name", "relative paths start at the current directory"),
    ],
)
def test_what_is_not_there(reference: str, advice: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder") as caught:
        open_model(reference)
    assert advice in str(caught.value)


# -- revisions in the Hub cache -------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which org/name's main is COMMIT."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--name"
    tiny_llm(repository / "snapshots" / COMMIT)
    (repository / "refs" / "refs" / "pr").mkdir(parents=True)
    for ref in ("main", "v1.0", "refs/pr/1"):
        (repository / "refs" / ref).write_text(COMMIT)
    (repository / "refs" / "other").write_text("f" * 40)
    (repository / "refs" / "broken").write_text("../../../models--org--name/snapshots/" + COMMIT)
    return tmp_path


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", "@refs/pr/1", f"@{COMMIT}"])
def test_a_revision_is_found_in_the_hub_cache(cache: Path, revision: str) -> None:
    checkpoint = open_model(f"org/name{revision}")
    assert checkpoint.name == f"org/name@{COMMIT}"
    checkpoint.close()


@pytest.mark.parametrize("revision", ["v2", "other", "f" * 40, "../v1.0", "refs/../main", "/etc"])
def test_a_revision_that_is_not_there_says_how_to_get_it(cache: Path, revision: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_model(f"org/name@{revision}")
    assert f"hf download org/name --revision {revision}" in str(caught.value)


def test_a_damaged_ref_is_told(cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"org/name@broken: .*no commit: download it again"):
        open_model("org/name@broken")


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    folder = tiny_llm(tmp_path / "llm")
    with pytest.raises(CheckpointError, match="has no revisions; leave @main away"):
        open_model(f"{folder}@main")
    with pytest.raises(CheckpointError, match="no such folder, and no Hub name"):
        open_model(f"{folder}-2@main")


def test_an_adapter_in_the_cache(cache: Path, write_lora: Any) -> None:
    base = cache / "models--org--name" / "snapshots" / COMMIT
    commit = "8" * 40
    folder = cache / "models--me--lora" / "snapshots" / commit
    folder.parent.mkdir(parents=True)
    write_lora(folder, base)
    checkpoint = open_model(f"org/name@v1.0+me/lora@{commit}")
    assert checkpoint.sources == (f"org/name@{COMMIT}", f"me/lora@{commit}")
    checkpoint.close()


def test_a_folder_with_a_plus_in_its_name_comes_first(tmp_path: Path) -> None:
    folder = tiny_llm(tmp_path / "llm+lora@1")
    checkpoint = open_model(str(folder))
    assert checkpoint.sources == (str(folder),)
    checkpoint.close()
