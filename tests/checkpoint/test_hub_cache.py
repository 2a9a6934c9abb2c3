"""The local Hugging Face cache, as far as adapters and models are looked up in it."""

from pathlib import Path

import pytest

from safegraft.checkpoint.hub_cache import hub_name, snapshot

COMMIT = "0123456789" * 4


def test_a_branch_leads_to_the_commit_that_was_downloaded(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text(COMMIT)
    assert snapshot(tmp_path, "org/name") == folder
    assert snapshot(tmp_path, "org/name", COMMIT) == folder


@pytest.mark.parametrize(
    ("name", "revision"), [("org/name", "r" * 100_000), ("org/" + "n" * 100_000, "main"), ("org/name", "a/../b")]
)
def test_what_cannot_be_there_is_not_there(tmp_path: Path, name: str, revision: str) -> None:
    (tmp_path / "models--org--name").mkdir()
    assert snapshot(tmp_path, name, revision) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"org/name@{COMMIT}", "org/name"),
        ("org/name", None),
        ("org/name@main", None),
        (f"folder@{COMMIT}", None),
        (f"org/name@{COMMIT}+org/lora", None),
    ],
)
def test_only_a_commit_makes_it_a_hub_name(name: str, expected: str | None) -> None:
    assert hub_name(name) == expected
