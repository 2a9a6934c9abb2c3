"""The server's life: open the data folder, answer calls, stop without losing work."""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio

from safegraft.errors import OutputError, ServerError
from safegraft.rpc.allocator import keep_freed_memory
from safegraft.rpc.artifacts import ArtifactServicer
from safegraft.rpc.blobs import BlobStore
from safegraft.rpc.changes import Changes
from safegraft.rpc.database import open_database, sqlite_in
from safegraft.rpc.guard import Guard
from safegraft.rpc.house import House
from safegraft.rpc.jobs import JobStore
from safegraft.rpc.merges import MergeServicer
from safegraft.rpc.models import Models
from safegraft.rpc.options import ServerOptions, split_address
from safegraft.rpc.pool import Worker, WorkerPool
from safegraft.rpc.publication_store import PublicationStore
from safegraft.rpc.publications import Publisher
from safegraft.rpc.runner import MergeRunner
from safegraft.rpc.wiring import add_services, set_serving
from safegraft.rpc.worker import WorkerSettings

PLANNERS = 2  # processes that plan and list methods
PUBLISHERS = 1  # processes that publish: uploads at the same time would only share the line
THREADS = 32  # for file and database access
SWEEP_SECONDS = 3600.0

# Message limits stay at gRPC's 4 MiB, and weights are not compressed: they do not get smaller.
CHANNEL_OPTIONS = (
    ("grpc.so_reuseport", 0),  # otherwise a second server on the port would silently take half of the calls
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),  # clients ping every minute
)

log = logging.getLogger(__name__)


def serve(options: ServerOptions) -> None:
    """Run a server until SIGTERM or SIGINT. Blocks.

    Raises UsageError, OutputError when the data folder cannot be used, ServerError when the address is taken.
    """
    keep_freed_memory()
    asyncio.run(_serve(options))


async def _serve(options: ServerOptions) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="files"))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with data_folder(options.data) as data_id:
        server = grpc.aio.server(interceptors=(Guard(options.token),), options=CHANNEL_OPTIONS)
        address = _bind(server, options)  # first, because it fails most often
        async with _house(replace(options, data=options.data.resolve()), data_id) as house, _answering(server, house):
            options.ready(f"listening on {address}")
            await stop.wait()
            log.info("stopping")


@contextmanager
def data_folder(data: Path) -> Generator[str]:
    """Make the folder and lock it for this process; yields the folder's own id. Raises OutputError."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OutputError(f"--data {data} cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"--data {data} is in use by another server; stop it or choose another folder") from None
        identity = os.pread(lock, 64, 0).decode().strip()
        if not identity:
            identity = secrets.token_hex(8)
            os.pwrite(lock, f"{identity}\n".encode(), 0)
            os.fsync(lock)
        yield identity
    finally:
        os.close(lock)


@asynccontextmanager
async def _house(options: ServerOptions, data_id: str) -> AsyncGenerator[House]:
    """Everything behind the services, running; put in order on the way out."""
    blobs = BlobStore(options.data)
    blobs.prepare()
    models = Models(options.models, blobs if options.max_upload_bytes else None, options.remote)
    database = open_database(options.database or sqlite_in(options.data), data_id)
    store, published = JobStore(database), PublicationStore(database)
    changes = Changes()
    lean = WorkerSettings(
        models, options.data, options.card, preload=False, sources=options.sources, device=options.device
    )
    heavy = replace(lean, preload=True)
    idle: list[Worker] = []
    merges = WorkerPool(heavy, options.workers, idle)
    publishing = WorkerPool(lean, PUBLISHERS)
    runner = MergeRunner(options.data, store, merges, changes, options.workers)
    house = House(
        options=options,
        store=store,
        published=published,
        runner=runner,
        publisher=Publisher(options.data, store, published, runner, publishing, changes),
        changes=changes,
        plans=WorkerPool(lean, PLANNERS),
        reads=WorkerPool(heavy, options.readers, idle),
        blobs=blobs,
    )
    sweeping = asyncio.create_task(_sweep(house))
    try:
        await asyncio.gather(merges.warm(), house.plans.warm())
        await house.runner.start()
        await house.publisher.start()
        yield house
    finally:
        sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeping
        await house.publisher.stop()
        await house.runner.stop()
        await asyncio.gather(merges.close(), house.plans.close(), house.reads.close(), publishing.close())
        database.dispose()


async def _sweep(house: House) -> None:
    """Remove uploads that nothing has used for long, now and then."""
    while True:
        try:
            in_use = await asyncio.to_thread(house.store.uploads_in_use)
            removed = await asyncio.to_thread(house.blobs.sweep, in_use, house.options.upload_lifetime)
            if removed:
                log.info("%d unused uploads removed", removed)
        except Exception:  # a full disk or a locked database now need not be so in an hour
            log.exception("unused uploads could not be removed; trying again later")
        await asyncio.sleep(SWEEP_SECONDS)


@asynccontextmanager
async def _answering(server: grpc.aio.Server, house: House) -> AsyncGenerator[None]:
    """Answer calls. On the way out: no new ones, those that wait are woken, the others have `grace` seconds."""
    healthy = add_services(server, MergeServicer(house), ArtifactServicer(house))
    await server.start()
    await set_serving(healthy)
    try:
        yield
    finally:
        await healthy.enter_graceful_shutdown()
        house.changes.stop()
        await server.stop(house.options.grace)


def _bind(server: grpc.aio.Server, options: ServerOptions) -> str:
    host, _ = split_address(options.listen)
    try:
        if options.tls_cert and options.tls_key:
            pair = (options.tls_key.read_bytes(), options.tls_cert.read_bytes())
            port = server.add_secure_port(options.listen, grpc.ssl_server_credentials([pair]))
        else:
            port = server.add_insecure_port(options.listen)
    except OSError as error:
        raise ServerError(f"TLS files cannot be read: {error}") from error
    except RuntimeError as error:
        raise ServerError(f"cannot listen on {options.listen}: {error}") from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
