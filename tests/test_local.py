"""Model references on this machine: folders, the Hugging Face cache, and what is not there."""

from pathlib import Path

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
        ("org/name", "hf download org/name --local-dir DIR"),
        ("./org/name", "relative paths start at the current directory"),
    ],
)
def test_what_is_not_there(reference: str, advice: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder") as caught:
        open_model(reference)
    assert advice in str(caught.value)
