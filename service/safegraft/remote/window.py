"""Reads ranges of files through memory: what is expected is fetched ahead, several blocks at a time.

Memory is bounded whatever the caller does: blocks that are here or on their way never take more than the bound, except
for one that is still being hashed when it is dropped. Whoever needs bytes that nobody has asked for yet fetches them
itself, in its own thread, so that nobody waits for threads that have other things to do. Knows files by name: no
tensors, and no network.
"""

import threading
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Container, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from safegraft.remote.blocks import Block, cut_blocks
from safegraft.remote.verifying import Verifier

MEMORY = 128 << 20  # bytes of blocks, here or on their way, of one checkpoint
BLOCK_BYTES = 4 << 20  # a request: long beside what a round trip takes, short beside the memory
CONNECTIONS = 8  # that fetch ahead; readers use their own besides
REACH = 4  # blocks: how far apart neighbours may be expected and still share one
RECENT = 64  # reads that tell where a window's readers are

Read = Callable[[str, int, int], bytes]  # file, start, stop


class ReadAhead:
    """Ranges of files, read by `read`. Safe to use from several threads.

    memory: bytes, of all windows together. Half of them at most is for what comes next; the others hold what has been
    read, until room is needed: many a merge method reads a tensor twice.
    verifier: is shown every byte that passes.
    """

    def __init__(self, read: Read, verifier: Verifier, *, memory: int = MEMORY) -> None:
        if memory < 1:
            raise ValueError(f"memory must be at least a byte, not {memory}")
        self._read = read
        self._verifier = verifier
        self._memory = memory
        self._largest = max(1, min(BLOCK_BYTES, memory // (2 * CONNECTIONS)))
        self._changed = threading.Condition()  # guards everything below
        self._windows: list[_Window] = []
        self._held: dict[Block, _Held] = {}
        self._taken = 0  # bytes of what is held or on its way
        self._workers = 0
        self._clock = 0
        self._closed = False

    @contextmanager
    def expecting(self, ranges: Iterable[tuple[str, int, int]]) -> Generator[None]:
        """Within the block these ranges (file, start, stop) are going to be read, about in this order."""
        window = _Window(cut_blocks(ranges, self._largest, REACH * self._largest))
        with self._changed:
            self._windows.append(window)
            for block in window.order.keys() & self._held.keys():
                self._held[block].unread = block.size
            self._fetch_ahead()
        try:
            yield
        finally:
            with self._changed:
                if window in self._windows:  # else it was all closed meanwhile
                    self._windows.remove(window)
                for block in window.order.keys() & self._held.keys():
                    self._tidy(self._held[block])
                self._fetch_ahead()
                self._changed.notify_all()

    def read_into(self, file: str, start: int, target: memoryview) -> None:
        """Fill `target` (of bytes) from byte `start` of a file. Raises what `read` raises on those bytes."""
        while target:
            with self._changed:
                length = self._gap(file, start, len(target))
            if length > self._largest:  # worth several requests at a time
                with self.expecting([(file, start, start + length)]):
                    self._copy(file, start, target[:length])
            else:
                length = length or len(target)
                self._copy(file, start, target[:length])
            target, start = target[length:], start + length

    def close(self) -> None:
        """Let go of everything; reading afterwards is an error. Fetches under way end unheard."""
        with self._changed:
            self._closed = True
            self._windows.clear()
            for held in list(self._held.values()):
                self._tidy(held)
            self._changed.notify_all()

    # -- readers --------------------------------------------------------------------------------

    def _gap(self, file: str, start: int, length: int) -> int:
        """How many bytes from `start` on, of `length`, no window has; 0 when one has the first."""
        return min((window.distance(file, start, length) for window in self._windows), default=length)

    def _copy(self, file: str, start: int, target: memoryview) -> None:
        while target:
            held = self._get(file, start, start + len(target))
            count = 0
            try:
                count = held.copy_to(target, start)
            finally:
                self._release(held, count)
            target, start = target[count:], start + count

    def _get(self, file: str, start: int, stop: int) -> "_Held":
        """A block with the byte `start`, its content here and to be released. No more than up to `stop` is fetched for
        it unless it is expected."""
        while True:
            held, mine = self._claim(file, start, stop)
            if mine:
                self._fetch(held)
            with self._changed:
                try:
                    while held.content is None and held.error is None:
                        self._changed.wait()
                        self._require_open()
                except BaseException:
                    self._let_go(held)
                    raise
                if held.error is None:
                    return held
                self._let_go(held)
                if self._held.get(held.block) is held:
                    del self._held[held.block]  # whoever comes next tries again
            if mine or isinstance(held.error, Exception):
                raise held.error
            # Else somebody interrupted the thread that was fetching it, which is no business of this one.

    def _claim(self, file: str, start: int, stop: int) -> "tuple[_Held, bool]":
        """A block to wait for, or (True) to fetch."""
        with self._changed:
            while True:
                self._require_open()
                block = self._find(file, start, stop)
                held = self._held.get(block)
                if held is not None:
                    held.users += 1
                    return held, False
                if self._make_room(block.size, urgent=True):
                    return self._reserve(block), True
                self._changed.wait()  # all there is of memory is in use or on its way, which passes

    def _find(self, file: str, start: int, stop: int) -> Block:
        """The block of a window that has the byte `start`, or else what no window has from there on."""
        found: Block | None = None
        for window in self._windows:
            block = window.find(file, start)
            if block is not None and block in self._held:
                return block
            found = found or block
        if found is None:
            length = self._gap(file, start, min(stop - start, self._largest))
            found = Block(file, start, start + length)
        return found

    def _release(self, held: "_Held", count: int) -> None:
        """After `count` bytes of a block have been read."""
        with self._changed:
            held.unread -= count
            for window in self._windows:
                if count and held.block in window.order:
                    window.recent.append(window.order[held.block])
            self._let_go(held)

    # -- fetching -------------------------------------------------------------------------------

    def _fetch(self, held: "_Held") -> None:
        """What goes wrong is for whoever reads the block."""
        block = held.block
        try:
            content = self._read(*block)
        except BaseException as error:
            with self._changed:
                held.error = error
                self._taken -= block.size
                self._changed.notify_all()
            return
        self._verifier.arrived(block.file, block.start, content)
        with self._changed:
            held.content = content
            self._changed.notify_all()
        self._verifier.digest(block.file)

    def _fetch_ahead(self) -> None:
        """Let as many fetch ahead as connections and memory allow."""
        while self._workers < CONNECTIONS and (held := self._next()) is not None:
            self._workers += 1
            # Daemons: a process that ends does not wait for a network.
            worker = threading.Thread(target=self._work, args=(held,), name="safegraft-fetch", daemon=True)
            try:
                worker.start()
            except RuntimeError:  # this process gets no more threads, or is ending: readers fetch for themselves
                self._workers -= 1
                self._taken -= held.block.size
                del self._held[held.block]
                return

    def _work(self, held: "_Held | None") -> None:
        while held is not None:
            self._fetch(held)
            with self._changed:
                self._let_go(held)
                held = self._next()
                if held is None:
                    self._workers -= 1

    def _next(self) -> "_Held | None":
        """The next block to fetch ahead, if there is room: of the window that has the least to go on with."""
        if self._closed:
            return None
        share = self._memory // 2 // max(1, len(self._windows))
        for ahead, window in sorted(((self._ahead(one), one) for one in self._windows), key=lambda pair: pair[0]):
            block = window.next(self._held.keys())
            if block is None or (ahead and ahead + block.size > share):
                continue
            if self._make_room(block.size, urgent=False):
                return self._reserve(block)
        return None

    def _ahead(self, window: "_Window") -> int:
        """Bytes of a window that wait to be read."""
        blocks = window.order.keys() & self._held.keys()
        return sum(block.size for block in blocks if self._is_awaited(self._held[block]))

    # -- memory ---------------------------------------------------------------------------------

    def _reserve(self, block: Block) -> "_Held":
        """Take the room for a block, on behalf of whoever is going to fetch it."""
        self._clock += 1
        held = self._held[block] = _Held(block, unread=block.size, used=self._clock)
        self._taken += block.size
        for window in self._windows:
            window.begun.add(block)
        return held

    def _make_room(self, size: int, *, urgent: bool) -> bool:
        """Drop what is least likely to be read again; only when it is urgent also what still waits to be read."""
        while self._taken + size > self._memory:
            idle = [one for one in self._held.values() if one.content is not None and not one.users]
            choice = min(idle, key=self._worth, default=None)
            if choice is None or (not urgent and self._is_awaited(choice)):
                return False
            self._drop(choice)
        return True

    def _worth(self, held: "_Held") -> tuple[bool, int]:
        """Read blocks go first, the least recently used before others; then those that will be read last."""
        if not self._is_awaited(held):
            return False, held.used
        return True, -max((window.order.get(held.block, -1) for window in self._windows), default=-1)

    def _is_awaited(self, held: "_Held") -> bool:
        """Whether it is going to be read for the first time. Not what readers have passed over."""
        return held.unread > 0 and any(window.awaits(held.block) for window in self._windows)

    def _let_go(self, held: "_Held") -> None:
        """One user less."""
        self._clock += 1
        held.used = self._clock
        held.users -= 1
        self._tidy(held)
        if not self._is_awaited(held):  # there may be room now
            self._fetch_ahead()
        self._changed.notify_all()

    def _tidy(self, held: "_Held") -> None:
        """Drop a block that nobody uses or expects."""
        if not held.users and not any(held.block in window.order for window in self._windows):
            self._drop(held)

    def _drop(self, held: "_Held") -> None:
        if self._held.get(held.block) is not held:
            return
        del self._held[held.block]
        if held.content is not None:
            self._taken -= held.block.size
            self._verifier.left(held.block.file, held.block.start, held.content)
            held.content = None  # frees it now, whoever still has `held`

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("the checkpoint has been closed")


@dataclass(slots=True, eq=False)
class _Held:
    """A block in memory or on its way there.

    unread: bytes that nobody has read yet. used: when it was last. users: who fetch, wait for or copy it just now.
    """

    block: Block
    unread: int
    used: int
    users: int = 1
    content: bytes | None = None
    error: BaseException | None = None

    def copy_to(self, target: memoryview, start: int) -> int:
        """Fill `target` from byte `start` of the file, as far as the content goes; returns how far that is."""
        assert self.content is not None  # whoever has it for reading has waited
        piece = memoryview(self.content)[start - self.block.start :][: len(target)]
        target[: len(piece)] = piece
        return len(piece)


class _Window:
    """The blocks that one caller expects, in their order."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.order = {block: index for index, block in enumerate(blocks)}
        self.begun: set[Block] = set()  # have been fetched once, or are being
        self.recent: deque[int] = deque(maxlen=RECENT)  # places of the blocks read last
        self._blocks = blocks
        self._at = 0
        self._by_file: dict[str, list[Block]] = defaultdict(list)
        for block in sorted(blocks):
            self._by_file[block.file].append(block)

    def next(self, present: Container[Block]) -> Block | None:
        """The first block that is still to be read and has not been fetched for anybody."""
        while self._at < len(self._blocks) and self._blocks[self._at] in self.begun:
            self._at += 1
        for index in range(max(self._at, self._front), len(self._blocks)):
            block = self._blocks[index]
            if block not in self.begun and block not in present:
                return block
        return None

    def find(self, file: str, byte: int) -> Block | None:
        """The block that has this byte."""
        own = self._by_file.get(file, [])
        index = bisect_right(own, byte, key=lambda block: block.start) - 1
        return own[index] if index >= 0 and byte < own[index].stop else None

    def distance(self, file: str, start: int, length: int) -> int:
        """How far it is from `start` to the next byte that is expected, at most `length`."""
        if self.find(file, start) is not None:
            return 0
        own = self._by_file.get(file, [])
        index = bisect_right(own, start, key=lambda block: block.start)
        return min(length, own[index].start - start) if index < len(own) else length

    def awaits(self, block: Block) -> bool:
        """Whether the block is expected, and not far behind what is being read by now."""
        place = self.order.get(block)
        return place is not None and place >= self._front

    @property
    def _front(self) -> int:
        """Where the last of the readers is: blocks before it have been read or passed over."""
        return min(self.recent, default=0)
