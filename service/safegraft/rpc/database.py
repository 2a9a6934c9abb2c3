"""The database of a data folder: SQLite or, by URL, PostgreSQL. Its tables, and how older ones are brought up to date.

Blocking code. Knows what rows look like, and not what they mean: jobs.py and publication_store.py do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.schema import CreateColumn

from safegraft.errors import ServerError, UsageError

SCHEMA_VERSION = 2

_metadata = sa.MetaData()

_facts = sa.Table(
    "safegraft_facts",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

merges = sa.Table(
    "safegraft_merges",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False, index=True),
    sa.Column("updated", sa.BigInteger, nullable=False),
    sa.Column("request_id", sa.String(128), unique=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("max_shard_size", sa.BigInteger, nullable=False),
    sa.Column("threads", sa.Integer, nullable=False),
    sa.Column("retention", sa.String(8), nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("progress", sa.Text, nullable=False),
    sa.Column("digests", sa.Text, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("deaths", sa.Integer, nullable=False),
    sa.Column("hub_credential", sa.String(64), nullable=False, server_default=""),
)

publications = sa.Table(
    "safegraft_publications",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("merge", sa.String(64), sa.ForeignKey(merges.c.id), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("updated", sa.BigInteger, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("destination", sa.Text, nullable=False),
    sa.Column("credential", sa.String(64), nullable=False),
    sa.Column("evaluated", sa.Boolean, nullable=False),
    sa.Column("progress", sa.Text, nullable=False),
    sa.Column("requests", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("error", sa.Text),
)


def open_database(url: str, data_id: str) -> sa.Engine:
    """The database of one data folder, with all its tables.

    Args:
        url: an SQLAlchemy URL.
        data_id: names the data folder. A database serves one folder only, since rows speak of files there.

    Raises UsageError for a URL that cannot be used, ServerError when the database does not answer, or is a later
    version's or another folder's.
    """
    try:
        engine = sa.create_engine(url)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise UsageError(f"the database's URL cannot be used: {error}") from error
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    try:
        with engine.begin() as connection:
            _open(connection, data_id)
    except BaseException as error:
        engine.dispose()
        if isinstance(error, OperationalError):
            raise ServerError(f"the database {engine.url!r} cannot be opened: {error.orig}") from error
        raise
    return engine


def sqlite_in(data: Path) -> str:
    """The URL of the default: an SQLite file within the data folder."""
    return f"sqlite:///{data / 'safegraft.db'}"


def _open(connection: sa.Connection, data_id: str) -> None:
    _facts.create(connection, checkfirst=True)
    owner = _fact(connection, "data_id")
    if owner not in (None, data_id):
        raise _unusable("belongs to another --data folder", "data_id", owner, data_id)
    found = _fact(connection, "schema_version")
    version = SCHEMA_VERSION if found is None else int(found) if found.isdigit() else 0
    if not 1 <= version <= SCHEMA_VERSION:
        raise _unusable("was written by another version of safegraft", "schema_version", found, str(SCHEMA_VERSION))
    for number in range(version, SCHEMA_VERSION):
        _MIGRATIONS[number](connection)
    _metadata.create_all(connection)
    _set_fact(connection, "data_id", data_id)
    _set_fact(connection, "schema_version", str(SCHEMA_VERSION))


def _unusable(why: str, name: str, found: str | None, wanted: str) -> ServerError:
    return ServerError(f"the database {why} ({name} {found}, not {wanted}); give the server another one")


def _fact(connection: sa.Connection, name: str) -> str | None:
    return connection.execute(sa.select(_facts.c.value).where(_facts.c.name == name)).scalar_one_or_none()


def _set_fact(connection: sa.Connection, name: str, value: str) -> None:
    if _fact(connection, name) is None:
        connection.execute(_facts.insert().values(name=name, value=value))
    else:
        connection.execute(_facts.update().where(_facts.c.name == name).values(value=value))


def _add_hub_credential(connection: sa.Connection) -> None:
    """Version 2 has publications, too, which `create_all` makes."""
    column = CreateColumn(merges.c.hub_credential).compile(dialect=connection.dialect)
    connection.execute(sa.text(f"ALTER TABLE {merges.name} ADD COLUMN {column}"))


# From each version to the next.
_MIGRATIONS: dict[int, Callable[[sa.Connection], None]] = {1: _add_hub_credential}


def _prepare_sqlite(engine: sa.Engine) -> None:
    """WAL, patience with other writers, and transactions that lock before they read."""

    def on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        connection.execute("PRAGMA busy_timeout = 30000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
