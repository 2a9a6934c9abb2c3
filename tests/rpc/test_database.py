"""The database of a data folder: whose it is, and what becomes of one that an earlier version has written."""

import json
import os
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from safegraft.errors import ServerError, UsageError
from safegraft.hub.publication import Destination
from safegraft.rpc.database import open_database, sqlite_in
from safegraft.rpc.job import Job, JobProgress, JobState, PlanSummary
from safegraft.rpc.jobs import JobStore
from safegraft.rpc.publication import Publication, PublicationState
from safegraft.rpc.publication_store import PublicationStore

# What version 1 wrote: its own statements, and a merge.
VERSION_1 = """
CREATE TABLE safegraft_facts (name VARCHAR(64) NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name));
CREATE TABLE safegraft_merges (
    id VARCHAR(64) NOT NULL, state VARCHAR(16) NOT NULL, revision BIGINT NOT NULL, created BIGINT NOT NULL,
    updated BIGINT NOT NULL, request_id VARCHAR(128), fingerprint VARCHAR(64) NOT NULL, recipe TEXT NOT NULL,
    max_shard_size BIGINT NOT NULL, threads INTEGER NOT NULL, retention VARCHAR(8) NOT NULL, plan TEXT NOT NULL,
    progress TEXT NOT NULL, digests TEXT NOT NULL, error TEXT, deaths INTEGER NOT NULL,
    PRIMARY KEY (id), UNIQUE (request_id)
);
CREATE INDEX ix_safegraft_merges_created ON safegraft_merges (created);
CREATE INDEX ix_safegraft_merges_state ON safegraft_merges (state);
INSERT INTO safegraft_facts VALUES ('schema_version', '1'), ('data_id', 'data');
"""
PLAN = {
    "digest": "d" * 64,
    "host_model": "lvlm",
    "files": [["a", 10]],
    "warnings": ["mind the gap"],
    "tensors": 3,
    "uploads": ["e" * 64],
    "modified": 7,
}
ROW = ("m", "succeeded", 4, 100, 200, "r", "f" * 64, "recipe", 5, 2, "none", json.dumps(PLAN))
MERGE = Job(
    id="m",
    state=JobState.SUCCEEDED,
    revision=4,
    created=100,
    updated=200,
    request_id="r",
    fingerprint="f" * 64,
    recipe="recipe",
    max_shard_size=5,
    threads=2,
    retention="none",
    plan=PlanSummary("d" * 64, "lvlm", (("a", 10),), ("mind the gap",), 3, ("e" * 64,), 7),
    progress=JobProgress(10, 3, ""),
    digests={"a": "0" * 64},
    deaths=1,
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A data folder with a database of version 1."""
    connection = sqlite3.connect(tmp_path / "safegraft.db")
    connection.executescript(VERSION_1)
    rest = ('{"bytes_done": 10, "tensors_done": 3, "current_file": ""}', json.dumps({"a": "0" * 64}), None, 1)
    connection.execute(f"INSERT INTO safegraft_merges VALUES ({', '.join('?' * 16)})", (*ROW, *rest))
    connection.commit()
    connection.close()
    return tmp_path


def schema(folder: Path) -> set[tuple[str, str]]:
    """Tables with their columns, and indices, as they are in the file."""
    connection = sqlite3.connect(folder / "safegraft.db")
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL")]
    found = {(name, column[1]) for name in names for column in connection.execute(f"PRAGMA table_info({name})")}
    connection.close()
    return found | {(name, "") for name in names}


def test_a_database_of_version_1_is_brought_up_to_date_and_keeps_its_merges(old: Path, tmp_path: Path):
    engine = open_database(sqlite_in(old), "data")
    assert JobStore(engine).get("m") == MERGE
    assert JobStore(engine).find_request("r", "f" * 64) == MERGE
    one = Publication("p", "m", PublicationState.RUNNING, 1, 1, 1, "f" * 64, Destination("org/name"), "", False)
    assert PublicationStore(engine).insert(one) == one
    engine.dispose()

    again = open_database(sqlite_in(old), "data")  # now that it is up to date
    assert JobStore(again).get("m") == MERGE
    assert PublicationStore(again).of("m") == [one]
    again.dispose()

    fresh = tmp_path / "fresh"
    fresh.mkdir()
    open_database(sqlite_in(fresh), "data").dispose()
    assert schema(old) == schema(fresh)


def test_another_folder_s_database_is_left_as_it_was(old: Path):
    before = schema(old)
    with pytest.raises(ServerError, match="another --data folder"):
        open_database(sqlite_in(old), "other")
    assert schema(old) == before


def test_what_is_stored_outlives_the_process(tmp_path: Path):
    first = open_database(sqlite_in(tmp_path), "data")
    JobStore(first).insert(MERGE)
    first.dispose()
    second = open_database(sqlite_in(tmp_path), "data")
    assert JobStore(second).get("m") == MERGE
    second.dispose()


def test_a_database_serves_one_data_folder(tmp_path: Path):
    open_database(sqlite_in(tmp_path), "data").dispose()
    with pytest.raises(ServerError, match="another --data folder"):
        open_database(sqlite_in(tmp_path), "other")


@pytest.mark.parametrize("version", ["99", "0", "-1", "two"])
def test_another_version_s_database_is_refused(tmp_path: Path, version: str):
    engine = open_database(sqlite_in(tmp_path), "data")
    with engine.begin() as connection:
        change = sa.text("UPDATE safegraft_facts SET value = :version WHERE name = 'schema_version'")
        connection.execute(change, {"version": version})
    engine.dispose()
    with pytest.raises(ServerError, match="another version"):
        open_database(sqlite_in(tmp_path), "data")


@pytest.mark.parametrize("url", ["nonsense", "nosuchdriver://host/db"])
def test_an_unusable_url_is_a_usage_error(url: str):
    with pytest.raises(UsageError, match="URL"):
        open_database(url, "data")


def test_a_database_that_cannot_be_opened_is_a_server_error(tmp_path: Path):
    with pytest.raises(ServerError, match="cannot be opened"):
        open_database(f"sqlite:///{tmp_path}{os.sep}missing{os.sep}db", "data")


def test_sqlite_runs_in_wal_mode_and_waits_for_its_turn(tmp_path: Path):
    engine = open_database(sqlite_in(tmp_path), "data")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30000
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()
