"""A worker process: plans, merges, computes bytes and publishes, one task at a time, for the server that spawned it.

Everything that reads a model or runs a plugin happens here, so that a crash ends one worker and never the server. Knows
no gRPC and no database. When the server is gone the worker stops too.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from safegraft.engine.hashing import ThreadedSha256
from safegraft.engine.plan import Card, make_plan
from safegraft.engine.staging import FileDigest
from safegraft.engine.task import Plan
from safegraft.errors import (
    InputChangedError,
    MergeCancelledError,
    NotFoundError,
    OutputError,
    Problem,
    SafegraftError,
    ServerError,
)
from safegraft.methods.registry import Registry
from safegraft.recipe import parse_recipe
from safegraft.rpc import messages
from safegraft.rpc.frames import head
from safegraft.rpc.messages import Answer, Assignment, Cancel, Order, Took
from safegraft.rpc.methods import catalogue
from safegraft.rpc.models import Models, uploads_in
from safegraft.rpc.ring import SLOT_BYTES, SLOTS, Ring
from safegraft.sources import with_sources

if TYPE_CHECKING:
    from safegraft.engine.execute import MergedCheckpoint
    from safegraft.engine.folder import Progress
    from safegraft.hub.results import Result

PROGRESS_SECONDS = 0.25  # between two answers about progress
IDLE_SECONDS = 60.0  # how long a merge is kept open for another read
ORPHAN_SECONDS = 5.0  # how long a worker may take to stop once the server is gone
SLOT_SECONDS = 0.05  # between two looks at whether a wait for a slot has become pointless
LOCK_SECONDS = 30.0  # how long to wait for an orphan that still writes the same merge

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is started with.

    preload: import torch before the first task asks for it. sources: of plugins, that recipes may read models from.
    device: where to compute.
    """

    models: Models
    data: Path
    card: Card | None
    preload: bool
    sources: tuple[str, ...] = ()
    device: str = "cpu"


def main(connection: Connection, ring: str, settings: WorkerSettings) -> None:
    """The process's whole life: do what comes over the pipe until it closes."""
    # A terminal's Ctrl-C and a service manager's SIGTERM reach the whole process group. The server decides what its
    # workers do then; if it cannot, the closed pipe ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s worker %(process)d: %(message)s")
    if settings.preload:
        import safegraft.engine.folder  # pyright: ignore[reportUnusedImport]
        import safegraft.engine.kernel  # noqa: F401  # pyright: ignore[reportUnusedImport] (imported for its cost)
    inbox = _Inbox(connection)
    with _Work(connection, inbox, Ring.attach(ring), settings) as work:
        while True:
            try:
                assignment = inbox.next(IDLE_SECONDS)
            except queue.Empty:
                work.rest()
                continue
            if assignment is None:
                return
            try:
                connection.send(work.do(assignment.task))
            except (BrokenPipeError, ConnectionResetError):
                return
            del assignment  # or a caller's token would stay until the next one comes


class _Inbox:
    """Listens to the server in a thread, so that a cancellation arrives while a task is being done."""

    def __init__(self, connection: Connection) -> None:
        self._cancelled = False
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._connection = connection
        self._current = 0
        self._assignments: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def next(self, seconds: float) -> Assignment | None:
        """Wait for the next assignment; None when the server has hung up. Raises queue.Empty."""
        return self._assignments.get(timeout=seconds)

    def cancelled(self) -> bool:
        """Whether the present assignment is no longer wanted."""
        return self._cancelled

    def free_slot(self) -> int:
        """Wait for a slot of the ring. Raises MergeCancelledError."""
        while not self._cancelled:
            try:
                return self._free.get(timeout=SLOT_SECONDS)
            except queue.Empty:
                continue
        raise MergeCancelledError("nobody wants the bytes any more")

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, ConnectionResetError):
                break
            if isinstance(message, Took):
                for slot in message.slots:
                    self._free.put(slot)
            elif isinstance(message, Cancel):
                self._cancelled = self._cancelled or message.number == self._current
            else:
                self._begin(message)
            del message  # or a caller's token would stay until the next one comes
        self._cancelled = True
        self._assignments.put(None)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)  # still here: something does not heed `cancelled`, and nobody is left to kill us

    def _begin(self, assignment: Assignment) -> None:
        self._current, self._cancelled = assignment.number, False
        self._free = queue.SimpleQueue()
        for slot in range(SLOTS):
            self._free.put(slot)
        self._assignments.put(assignment)


class _Work:
    """Does tasks. Keeps the last merge open that bytes were read from: the next file is likely of the same. Keeps the
    last plan: its merge is likely to be computed next."""

    def __init__(self, connection: Connection, inbox: _Inbox, ring: Ring, settings: WorkerSettings) -> None:
        self._connection = connection
        self._inbox = inbox
        self._ring = ring
        self._settings = settings
        self._cache = settings.data / "calibration"  # statistics of models at work
        self._registry: Registry | None = None
        self._open: tuple[Order, Plan, MergedCheckpoint] | None = None
        self._planned: tuple[messages.PlanTask, Plan] | None = None
        self._throttle = _Throttle()
        places = [*((root.path, root.name) for root in settings.models.roots), (settings.data, "DATA")]
        self._paths = [(str(path), name) for path, name in places if path != Path("/")]

    def __enter__(self) -> "_Work":
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()
        self._ring.close()

    def rest(self) -> None:
        """Let go of the merge that is open and of the last plan, and so of their inputs' files."""
        self._close_open()
        if self._planned is not None:
            _, plan = self._planned
            self._planned = None
            plan.close()

    def _close_open(self) -> None:
        if self._open is not None:
            _, plan, merged = self._open
            self._open = None
            merged.close()
            plan.close()

    def do(self, task: messages.Task) -> messages.Final:
        """Do one task; whatever goes wrong becomes its answer."""
        try:
            match task:
                case messages.ListMethodsTask():
                    return messages.MethodsListed(catalogue(self._methods()))
                case messages.PlanTask():
                    return self._describe(task)
                case messages.WriteTask(order, out):
                    return self._write(order, out)
                case messages.ReadTask():
                    return self._read(task)
                case messages.PublishTask():
                    return self._publish(task)
        except MergeCancelledError as error:
            return messages.Failed(error)  # the next task is likely to continue with the same merge
        except SafegraftError as error:
            self.rest()
            return messages.Failed(self._presentable(error))
        except MemoryError:
            return messages.Failed(ServerError("the server ran out of memory; try fewer threads, or a larger machine"))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # a bug: it must reach the log and the client, and not end the worker
            _log_bug(error, task)
            return messages.Failed(SafegraftError(f"internal error ({type(error).__name__}); see the server's log"))

    def _answer(self, answer: Answer) -> None:
        self._connection.send(answer)

    def _written(self, progress: "Progress") -> None:
        """Tell how far a merge is."""
        if self._throttle.passes(progress.file, progress.bytes_done, progress.bytes_total):
            self._answer(messages.Progressed(progress.file, progress.bytes_done, progress.tensors_done))

    def _sent(self, bytes_done: int, bytes_total: int, file: str) -> None:
        """Tell how far a publication is."""
        if self._throttle.passes(file, bytes_done, bytes_total):
            self._answer(messages.Progressed(file, bytes_done, bytes_total=bytes_total))

    def _methods(self) -> Registry:
        if self._registry is None:
            self._registry = Registry.discover()
        return self._registry

    def _plan(self, text: str, max_shard_size: int, credential: str, pins: dict[str, str]) -> Plan:
        """pins: see `Models.open`."""
        models = self._settings.models
        recipe = parse_recipe(text, folder_exists=models.exists)
        open_model = partial(models.open, credential=credential or None, pins=pins)
        return make_plan(
            recipe,
            with_sources(open_model, self._methods(), self._settings.sources),
            self._methods(),
            find_data=models.find_data,
            max_shard_size=max_shard_size,
            card=self._settings.card,
        )

    def _plan_again(self, order: Order) -> Plan:
        """The plan of a stored merge, which must be what it was when the merge was created."""
        if (kept := self._kept_plan(order)) is not None:
            return kept
        plan = self._plan(order.recipe, order.max_shard_size, order.hub_credential, dict(order.pins))
        if plan.digest != order.digest:
            plan.close()
            raise InputChangedError(
                f"the plan is another one than when the merge was created ({plan.digest}, was {order.digest}): "
                "an input, a plugin or safegraft itself has changed since; create the merge again"
            )
        if _modified(plan) != order.modified:
            plan.close()
            raise InputChangedError("an input was modified after the merge was created; create the merge again")
        return plan

    def _kept_plan(self, order: Order) -> Plan | None:
        """The plan that was made here just now, if it is this one and nothing has changed since."""
        if self._planned is None:
            return None
        task, plan = self._planned
        self._planned = None
        planned = task.recipe, task.max_shard_size, task.hub_credential, plan.digest
        if planned == (order.recipe, order.max_shard_size, order.hub_credential, order.digest):
            with contextlib.suppress(InputChangedError):  # then planning again will tell
                for checkpoint in plan.checkpoints.values():
                    checkpoint.verify_unchanged()
                if _modified(plan) == order.modified:
                    return plan
        plan.close()
        return None

    def _describe(self, task: messages.PlanTask) -> messages.Planned:
        if task.keep:
            self.rest()
        pins: dict[str, str] = {}
        plan = self._plan(task.recipe, task.max_shard_size, task.hub_credential, pins)
        try:
            uploads = [digest for reference in plan.checkpoints for digest in uploads_in(reference)]
            planned = messages.Planned(plan.to_dict(), tuple(uploads), _modified(plan), tuple(pins.items()))
        except BaseException:
            plan.close()
            raise
        if task.keep:
            self._planned = task, plan
        else:
            plan.close()
        return planned

    def _write(self, order: Order, out: Path) -> messages.Written:
        from safegraft.engine.folder import write_folder

        plan = self._plan_again(order)
        try:
            with _alone(out.parent / "worker.lock", self._inbox.cancelled):
                result = write_folder(
                    plan,
                    out,
                    threads=order.threads or None,
                    device=self._settings.device,
                    cache=self._cache,
                    progress=self._written,
                    cancelled=self._inbox.cancelled,
                )
            return messages.Written({name: entry.sha256 for name, entry in result.files.items()})
        finally:
            plan.close()

    def _read(self, task: messages.ReadTask) -> messages.ReadDone:
        from safegraft.engine.execute import manifest_of

        plan, merged = self._merged(task.order)
        planned = next((file for file in plan.files if file.name == task.file), None)
        if planned is None:
            raise NotFoundError(f"the merge has no file {task.file}")
        if planned.kind != "manifest":
            blocks = merged.files[task.file].stream(task.start, task.stop, cancelled=self._inbox.cancelled)
            sha256 = self._hand_over(blocks, task.start)
            complete = (task.start, task.stop) == (0, planned.size)
            digests = {task.file: sha256} if complete else {}
        else:
            digests = dict(task.digests) | self._missing_digests(merged, task)
            content = manifest_of(
                plan, {one.name: FileDigest(one.size, digests[one.name]) for one in plan.files if one is not planned}
            )
            self._hand_over([memoryview(content)[task.start : task.stop]], task.start)
            digests[task.file] = hashlib.sha256(content).hexdigest()
        for checkpoint in plan.checkpoints.values():
            checkpoint.verify_unchanged()
        return messages.ReadDone(digests)

    def _publish(self, task: messages.PublishTask) -> messages.Published:
        from safegraft.hub.evaluation import read_evaluation
        from safegraft.hub.publishing import publish
        from safegraft.remote.access import HubAccess

        token, evaluation = task.publicity.token, task.publicity.evaluation
        access = HubAccess(token=token) if token else self._settings.models.access(task.credential)
        try:
            with _alone(task.journal / "worker.lock", self._inbox.cancelled), self._result(task) as result:
                publication = publish(
                    result,
                    task.destination,
                    access,
                    evaluation=read_evaluation(evaluation) if evaluation else None,
                    unevaluated=evaluation is None,
                    plot=task.publicity.plot,
                    scratch=task.scratch,
                    journal=task.journal,
                    progress=self._sent,
                    cancelled=self._inbox.cancelled,
                )
        finally:
            shutil.rmtree(task.scratch, ignore_errors=True)
        return messages.Published(publication)

    @contextmanager
    def _result(self, task: messages.PublishTask) -> "Generator[Result]":
        """What is published: the folder, or what the plan gives, shard by shard."""
        from safegraft.hub.results import FolderResult, PlannedResult

        if task.out is not None:
            with FolderResult(task.out) as result:
                yield result
            return
        plan = self._plan_again(task.order)
        try:
            threads, device = task.order.threads or None, self._settings.device
            with PlannedResult(plan, threads=threads, device=device, cache=self._cache) as result:
                yield result
        finally:
            plan.close()

    def _hand_over(self, blocks: Iterable[memoryview], offset: int) -> str:
        """Pass bytes of a file, from `offset`, to the server in full slots; returns their sha256."""
        with ThreadedSha256() as whole:
            slot, filled = self._inbox.free_slot(), 0
            for block in blocks:
                whole.update(block)
                while block:
                    part, block = block[: SLOT_BYTES - filled], block[SLOT_BYTES - filled :]
                    self._ring.write(slot, filled, part)
                    filled += len(part)
                    if filled == SLOT_BYTES:
                        self._hand_over_slot(slot, filled, offset)
                        offset += filled
                        slot, filled = self._inbox.free_slot(), 0
            if filled:
                self._hand_over_slot(slot, filled, offset)
            return whole.hexdigest()

    def _hand_over_slot(self, slot: int, size: int, offset: int) -> None:
        with self._ring.view(slot, size) as data:
            self._answer(messages.Block(slot, size, head(data, offset)))

    def _missing_digests(self, merged: "MergedCheckpoint", task: messages.ReadTask) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, file in merged.files.items():
            if name != task.file and name not in task.digests:
                whole = hashlib.sha256()
                for block in file.stream(cancelled=self._inbox.cancelled):
                    whole.update(block)
                found[name] = whole.hexdigest()
        return found

    def _merged(self, order: Order) -> "tuple[Plan, MergedCheckpoint]":
        from safegraft.engine.execute import MergedCheckpoint

        if self._open is None or self._open[0] != order:
            self._close_open()
            plan = self._plan_again(order)
            threads, device = order.threads or None, self._settings.device
            self._open = order, plan, MergedCheckpoint(plan, threads=threads, device=device, cache=self._cache)
        return self._open[1:]

    def _presentable(self, error: SafegraftError) -> SafegraftError:
        """The error as it may leave: without places on this machine, and of one of safegraft's own classes.

        A plugin's class would have the server import the plugin.
        """
        parents = (cls for cls in type(error).__mro__ if issubclass(cls, SafegraftError))
        own = next(cls for cls in parents if cls.__module__ == SafegraftError.__module__)
        return own([Problem(self._hide(one.where), self._hide(one.message)) for one in error.problems])

    def _hide(self, text: str) -> str:
        for path, name in self._paths:
            text = text.replace(path, name)
        return text


def _log_bug(error: Exception, task: messages.Task) -> None:
    """With the traceback, and without tokens that another library may have put into its message."""
    from safegraft.remote.access import scrub

    text = scrub("".join(traceback.format_exception(error)))
    if isinstance(task, messages.PublishTask) and task.publicity.token:
        text = text.replace(task.publicity.token, "***")
    log.error("a task failed\n%s", text)


def _modified(plan: Plan) -> int:
    """When inputs last changed of which the digest covers a sample only, in nanoseconds since the epoch; else 0."""
    sampled = (one for one in plan.checkpoints.values() if one.identity.scheme == "sampled-sha256")
    return max((one.modified_ns() for one in sampled), default=0)


class _Throttle:
    """Says which progress is passed on: when a while has passed, the file is another one, or all is done."""

    def __init__(self) -> None:
        self._file = ""
        self._last = 0.0

    def passes(self, file: str, bytes_done: int, bytes_total: int) -> bool:
        now = time.monotonic()
        if bytes_done < bytes_total and file == self._file and now - self._last < PROGRESS_SECONDS:
            return False
        self._file, self._last = file, now
        return True


@contextmanager
def _alone(path: Path, cancelled: Callable[[], bool]) -> Generator[None]:
    """Hold a lock that outlives no process. A killed server's worker may need a moment to notice and let go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if cancelled():
                    raise MergeCancelledError("the merge was cancelled") from None
                if time.monotonic() > deadline:
                    raise OutputError("another process still works on this merge; end it, then try again") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(lock)
