"""Worker processes as the server sees them: started by spawning, used by one task at a time, replaced when they die.

Runs in the server's event loop. Knows no merges and no gRPC.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import threading
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor

from safegraft.errors import SafegraftError, ServerError, ServerUnavailableError
from safegraft.rpc import worker as worker_process
from safegraft.rpc.messages import Answer, Assignment, Block, Cancel, Failed, Final, Progressed, Task, Took
from safegraft.rpc.ring import Ring
from safegraft.rpc.worker import WorkerSettings

STOP_SECONDS = 1.0  # how long a worker may take to heed a cancellation before it is killed

log = logging.getLogger(__name__)

# gRPC does not survive fork; spawned processes share nothing with this one but their pipe.
_spawn = multiprocessing.get_context("spawn")


class WorkerDiedError(ServerError):
    """A worker process ended in the middle of a task."""


class Worker:
    """One process. `assign` a task, then `receive` until `busy` is False."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.busy = False
        self.proven = False
        self.affinity: object = None  # what it did last, for the pool
        self._broken = False
        self._number = 0
        ours, theirs = _spawn.Pipe()
        self._connection = ours
        self._ring = Ring.create()
        arguments = (theirs, self._ring.name, settings)
        self._process = _spawn.Process(target=worker_process.main, args=arguments, daemon=True)
        # A thread of its own waits on the pipe: workers may be silent for long, and shared threads would run out.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="worker-pipe")
        self._pending: asyncio.Future[Progressed | Final | list[bytes]] | None = None
        self._ahead: Progressed | Final | None = None  # read from the pipe, and not told yet
        self._theirs = theirs
        self._sending = threading.Lock()

    async def start(self) -> None:
        """Have the process running. It need not be ready for its first task to be assigned."""
        await asyncio.to_thread(self._start)

    async def assign(self, task: Task) -> None:
        """Give the idle worker a task. Raises WorkerDiedError."""
        assert not self.busy
        self._number += 1
        self.busy = True
        try:
            await asyncio.to_thread(self._start, Assignment(self._number, task))
        except (BrokenPipeError, ConnectionResetError):
            raise await self._died() from None

    async def receive(self) -> Progressed | Final | list[bytes]:
        """The next answer, or the messages of the Blocks that are there. Raises the task's error, or WorkerDiedError.

        May be cancelled; no answer gets lost.
        """
        if self._pending is None:
            self._pending = asyncio.get_running_loop().run_in_executor(self._thread, self._read)
        try:
            answer = await asyncio.shield(self._pending)
        except (EOFError, ConnectionResetError):
            raise await self._died() from None
        self._pending = None
        if isinstance(answer, Failed):
            self.busy = False
            raise answer.error
        self.busy = isinstance(answer, Progressed | list)
        self.proven = True
        return answer

    async def cancel(self) -> None:
        """Ask it to stop its task; it answers with a MergeCancelledError soon."""
        await asyncio.to_thread(self._tell, Cancel(self._number))

    def kill(self) -> None:
        if self._process.pid is not None:
            self._process.kill()

    async def settle(self) -> None:
        """Make a busy worker idle: cancel, and kill it if it does not heed that."""
        if not self.busy:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.cancel()
                while self.busy:
                    with contextlib.suppress(SafegraftError):  # its task is given up: nobody asks how it ended
                        await self.receive()
        except TimeoutError:
            log.warning("worker %s does not stop and is killed", self._process.pid)
            self._broken = True
            self.kill()

    async def close(self) -> None:
        """End the process: an idle one by hanging up, a busy one by killing it."""
        if self._pending is not None:
            self.kill()
            with contextlib.suppress(EOFError, ConnectionResetError):
                await self._pending
        self._connection.close()
        self._theirs.close()
        if self._process.pid is not None:
            await asyncio.to_thread(self._process.join, STOP_SECONDS)
            self.kill()
            await asyncio.to_thread(self._process.join)
        self._thread.shutdown(wait=False)
        self._ring.remove()

    @property
    def ready(self) -> bool:
        """True when it can be given a task."""
        return not self.busy and not self._broken and self._process.is_alive()

    def _start(self, first: Assignment | None = None) -> None:
        with self._sending:
            if self._process.pid is None:
                self._process.start()
                self._theirs.close()  # or the pipe would not close with the process
            if first is not None:
                self._connection.send(first)

    def _read(self) -> Progressed | Final | list[bytes]:
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return ahead
        answer: Answer = self._connection.recv()
        if not isinstance(answer, Block):
            return answer
        blocks = [answer]
        # All that are there: a change of thread for each would cost more than the copy.
        while self._ahead is None and self._connection.poll():
            answer = self._connection.recv()
            if isinstance(answer, Block):
                blocks.append(answer)
            else:
                self._ahead = answer
        frames = [self._frame(block) for block in blocks]
        self._tell(Took(tuple(block.slot for block in blocks)))
        return frames

    def _frame(self, block: Block) -> bytes:
        with self._ring.view(block.slot, block.size) as data:
            return b"".join((block.head, data))

    def _tell(self, message: Cancel | Took) -> None:
        with self._sending, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `receive` reports the death
            self._connection.send(message)

    async def _died(self) -> WorkerDiedError:
        self.busy, self._broken, self._pending = False, True, None
        await asyncio.to_thread(self._process.join, STOP_SECONDS)
        self.kill()  # its pipe is gone, so it is of no use even if it lives on
        code = self._process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return WorkerDiedError(f"a worker process ended unexpectedly ({how}); the server may be short of memory")


class WorkerPool:
    """Up to `size` workers at work, started when needed and kept.

    idle: workers at rest. Pools with equal settings may share the list, and so each other's warm workers.
    """

    def __init__(self, settings: WorkerSettings, size: int, idle: list[Worker] | None = None) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(size)
        self._idle = [] if idle is None else idle
        self._leased: set[Worker] = set()
        self._closing = False
        self._returns: set[asyncio.Task[None]] = set()

    async def warm(self) -> None:
        """Have one worker ready, so that the first task need not wait for a process to start."""
        async with self.lease() as worker:
            await worker.start()

    @property
    def has_idle(self) -> bool:
        """Whether a worker is at hand that need not be waited for: one that has done something, and so has started."""
        return not self._slots.locked() and any(one.ready and one.proven for one in self._idle)

    @contextlib.asynccontextmanager
    async def lease(self, affinity: object = None, patience: float | None = None) -> AsyncGenerator[Worker]:
        """An idle worker, for one task or several; best one that was leased for the same `affinity` last.

        Raises ServerUnavailableError after `patience` seconds without a free one, or when the pool is closing.
        """
        try:
            async with asyncio.timeout(patience):
                await self._slots.acquire()
        except TimeoutError:
            raise ServerUnavailableError("all workers for this kind of call are busy; try again") from None
        try:
            worker = self._take(affinity)
        except BaseException:
            self._slots.release()
            raise
        try:
            yield worker
        finally:
            # A task of its own: a cancelled call must not wait for the worker to settle.
            self._later(self._give_back(worker))

    async def run(self, task: Task) -> Progressed | Final | list[bytes]:
        """Do a task that has a single answer. Raises its error, or WorkerDiedError."""
        async with self.lease() as worker:
            await worker.assign(task)
            return await worker.receive()

    async def close(self) -> None:
        """End all workers. Those given back just now may settle; leases still held see theirs die."""
        self._closing = True
        await asyncio.gather(*self._returns)
        for worker in self._leased:
            worker.kill()
        while self._returns:
            await asyncio.gather(*self._returns)
        resting = self._idle[:]
        self._idle.clear()
        await asyncio.gather(*(worker.close() for worker in resting))

    def _take(self, affinity: object) -> Worker:
        if self._closing:
            raise ServerUnavailableError("the server is stopping; call again when it is back")
        for dead in [one for one in self._idle if not one.ready]:
            self._idle.remove(dead)
            self._later(dead.close())
        # Newest first: its memory is warmest. min() keeps the order among equals.
        newest = reversed(self._idle)
        worker = min(newest, key=lambda one: affinity is None or one.affinity != affinity, default=None)
        if worker is None:
            worker = Worker(self._settings)
        else:
            self._idle.remove(worker)
        worker.affinity = affinity
        self._leased.add(worker)
        return worker

    def _later(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)

    async def _give_back(self, worker: Worker) -> None:
        try:
            await worker.settle()
            if worker.ready and not self._closing:
                self._idle.append(worker)
            else:
                await worker.close()
        finally:
            self._leased.discard(worker)
            self._slots.release()
