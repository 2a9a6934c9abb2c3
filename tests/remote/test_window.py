"""Reading ahead: the file's bytes whatever is expected, read, delayed or failing; each moved once; memory bounded."""

import random
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memorystore import MemoryStore, together, wait_until

from safegraft.errors import CheckpointError
from safegraft.remote.blocks import cut_blocks
from safegraft.remote.verifying import Verifier
from safegraft.remote.window import BLOCK_BYTES, CONNECTIONS, ReadAhead

CONTENTS = {"a": random.Random(1).randbytes(300), "b": random.Random(2).randbytes(97)}


def ahead(store: MemoryStore, memory: int) -> ReadAhead:
    verifier = Verifier("here")
    for name, file in store.listing.files.items():
        if file.sha256 is not None:
            verifier.add(name, file.size, file.sha256)
    return ReadAhead(
        lambda file, start, stop: store.read(store.listing.files[file], start, stop), verifier, memory=memory
    )


def read(reader: ReadAhead, file: str, start: int, stop: int) -> bytes:
    buffer = bytearray(stop - start)
    reader.read_into(file, start, memoryview(buffer))
    return bytes(buffer)


@st.composite
def ranges(draw: st.DrawFn, most: int) -> list[tuple[str, int, int]]:
    found = []
    for _ in range(draw(st.integers(0, most))):
        file = draw(st.sampled_from(sorted(CONTENTS)))
        start = draw(st.integers(0, len(CONTENTS[file])))
        found.append((file, start, draw(st.integers(start, len(CONTENTS[file])))))
    return found


# ---- cutting


@given(expected=ranges(12), largest=st.integers(1, 120), reach=st.integers(0, 300))
def test_blocks_cover_what_is_expected_once_and_nothing_else(expected, largest, reach) -> None:
    blocks = cut_blocks(expected, largest, reach)
    covered = [(block.file, at) for block in blocks for at in range(block.start, block.stop)]
    wanted = {(file, at) for file, start, stop in expected for at in range(start, stop)}
    assert len(covered) == len(set(covered))
    assert set(covered) == wanted
    assert all(0 < block.size <= largest for block in blocks)


def test_blocks_come_in_the_order_of_first_use() -> None:
    blocks = cut_blocks([("b", 50, 90), ("a", 0, 25), ("b", 0, 10)], 20, 0)
    assert [tuple(block) for block in blocks] == [
        ("b", 50, 70),
        ("b", 70, 90),
        ("a", 0, 20),
        ("a", 20, 25),
        ("b", 0, 10),
    ]


def test_small_neighbours_share_a_block_in_whatever_order_they_are_expected() -> None:
    parts = [("a", start, start + 10) for start in range(0, 100, 10)]
    random.Random(3).shuffle(parts)
    blocks = cut_blocks(parts, 50, 100)
    assert sorted(blocks) == [("a", 0, 50), ("a", 50, 100)]
    assert blocks[0].start <= parts[0][1] < blocks[0].stop


def test_neighbours_that_are_needed_at_different_times_do_not() -> None:
    expected = [("a", 0, 10), ("b", 0, 90), ("a", 10, 20)]
    assert [tuple(block) for block in cut_blocks(expected, 100, 50)] == [("a", 0, 10), ("b", 0, 90), ("a", 10, 20)]


# ---- reading


@given(
    windows=st.lists(ranges(6), max_size=3),
    reads=st.lists(ranges(8), min_size=1, max_size=4),
    memory=st.integers(1, 500),
    seed=st.integers(0, 99),
    sha256=st.booleans(),
)
@settings(max_examples=70, deadline=None)
def test_anything_expected_anything_read(windows, reads, memory, seed, sha256) -> None:
    chance = random.Random(seed)
    store = MemoryStore(CONTENTS, sha256=sha256, before=lambda *_: time.sleep(chance.random() * 0.0005))
    reader = ahead(store, memory)
    left = threading.Barrier(len(reads))

    def work(own, window) -> None:
        with reader.expecting(window):
            for file, start, stop in own:
                assert read(reader, file, start, stop) == CONTENTS[file][start:stop]
            left.wait(30)
        for file, start, stop in own[:2]:
            assert read(reader, file, start, stop) == CONTENTS[file][start:stop]

    together(
        [
            lambda own=own, index=index: work(own, windows[index % len(windows)] if windows else [])
            for index, own in enumerate(reads)
        ]
    )
    wait_until(lambda: store.reading == 0)
    # A block of each file may still be hashed when it is dropped.
    assert store.peak <= memory + (len(CONTENTS) * max(1, memory // (2 * CONNECTIONS)) if sha256 else 0)
    reader.close()
    wait_until(lambda: store.live == 0)


def test_in_the_expected_order_each_byte_moves_once_and_no_other() -> None:
    expected = [("a", 40, 90), ("b", 10, 20), ("a", 90, 95), ("a", 200, 300), ("b", 0, 10)]
    for cut in (1, 3, 7, 1000):
        store = MemoryStore(CONTENTS)
        reader = ahead(store, 160)
        with reader.expecting(expected):
            for file, start, stop in expected:
                for at in range(start, stop, cut):
                    assert read(reader, file, at, min(at + cut, stop)) == CONTENTS[file][at : min(at + cut, stop)]
        for file in CONTENTS:
            wanted = {at for name, start, stop in expected if name == file for at in range(start, stop)}
            assert store.times(file) == [int(at in wanted) for at in range(len(CONTENTS[file]))]
        reader.close()


def test_it_fetches_several_blocks_at_a_time_before_they_are_read() -> None:
    free = threading.Event()
    store = MemoryStore(CONTENTS, before=lambda *_: free.wait(20) and None)
    reader = ahead(store, 320)
    with reader.expecting([("a", 0, 300)]):
        wait_until(lambda: store.reading == CONNECTIONS)
        free.set()
        wait_until(lambda: store.bytes_read == 160)  # half of the memory; the rest when there is room
        time.sleep(0.01)
        assert store.bytes_read == 160
        assert store.most_reading == CONNECTIONS
        assert read(reader, "a", 0, 300) == CONTENTS["a"]
    assert store.bytes_read == 300
    reader.close()


def test_a_long_read_that_nobody_announced_is_several_requests_at_a_time() -> None:
    store = MemoryStore(CONTENTS, before=lambda *_: time.sleep(0.01))
    reader = ahead(store, 320)
    assert read(reader, "a", 5, 295) == CONTENTS["a"][5:295]
    assert store.most_reading > 2
    assert store.times("a") == [int(5 <= at < 295) for at in range(300)]
    wait_until(lambda: store.live == 0)
    reader.close()


def test_what_was_read_stays_while_there_is_room() -> None:
    store = MemoryStore(CONTENTS)
    reader = ahead(store, 640)
    with reader.expecting([("a", 0, 300)]):
        for _ in range(3):  # a method that prepares, a merge, a modifier
            for at in range(0, 300, 25):
                assert read(reader, "a", at, at + 25) == CONTENTS["a"][at : at + 25]
    assert store.times("a") == [1] * 300
    reader.close()


def test_a_second_pass_over_more_than_there_is_room_for_costs_that_again_and_no_more() -> None:
    store = MemoryStore(CONTENTS)
    reader = ahead(store, 64)
    with reader.expecting([("a", 0, 300)]):
        for _ in range(2):
            for at in range(0, 300, 2):
                assert read(reader, "a", at, at + 2) == CONTENTS["a"][at : at + 2]
    assert max(store.times("a")) == 2
    reader.close()


def test_a_window_full_of_blocks_that_nobody_reads_stops_nobody() -> None:
    store = MemoryStore(CONTENTS)
    reader = ahead(store, 32)
    with reader.expecting([("a", 0, 300), ("b", 0, 97)]):
        wait_until(lambda: store.bytes_read == 16 and store.reading == 0)
        for at in reversed(range(97)):
            assert read(reader, "b", at, at + 1) == CONTENTS["b"][at : at + 1]
        assert read(reader, "a", 0, 300) == CONTENTS["a"]
    assert store.peak <= 32 + 2 * 2
    reader.close()


def test_tensors_that_are_passed_over_do_not_hold_up_the_rest() -> None:
    """Of a vocabulary that is larger than another, some rows are expected and never read."""
    store = MemoryStore(CONTENTS)
    reader = ahead(store, 64)
    with reader.expecting([("a", 0, 300), ("b", 0, 97)]):
        for at in range(80):
            assert read(reader, "b", at, at + 1) == CONTENTS["b"][at : at + 1]
        wait_until(lambda: store.times("b")[95] == 1)
        assert sum(store.times("a")) <= 64
    reader.close()


def test_what_was_fetched_out_of_turn_is_not_fetched_ahead_as_well() -> None:
    store = MemoryStore(CONTENTS)
    reader = ahead(store, 64)
    with reader.expecting([("a", 0, 300)]):
        for part in (range(200, 300), range(200)):
            for at in part:
                assert read(reader, "a", at, at + 1) == CONTENTS["a"][at : at + 1]
        wait_until(lambda: store.reading == 0)
    assert store.times("a")[200:] == [1] * 100
    assert sum(store.times("a")) <= 300 + 32  # what lay ready at the beginning was passed over
    reader.close()


def test_what_was_read_last_stays_longest() -> None:
    store = MemoryStore(CONTENTS)
    reader = ahead(store, 160)
    with reader.expecting([("a", 0, 300)]):
        for _ in range(2):
            for at in range(0, 300, 10):
                if at >= 200 or store.times("a")[299] == 0:
                    assert read(reader, "a", at, at + 10) == CONTENTS["a"][at : at + 10]
    assert store.times("a") == [1] * 300
    reader.close()


def test_windows_do_not_take_each_others_blocks() -> None:
    store = MemoryStore(CONTENTS)
    reader = ahead(store, 64)
    with ExitStack() as windows:
        for start in range(0, 300, 50):
            windows.enter_context(reader.expecting([("a", start, start + 50)]))
        wait_until(lambda: store.reading == 0)
        for at in range(300):
            assert read(reader, "a", at, at + 1) == CONTENTS["a"][at : at + 1]
    assert store.times("a") == [1] * 300
    reader.close()


def test_what_another_stream_still_expects_is_kept_for_it() -> None:
    store = MemoryStore(CONTENTS)
    reader = ahead(store, 160)
    with reader.expecting([("a", 0, 70)]):
        assert read(reader, "a", 0, 70) == CONTENTS["a"][:70]
        with reader.expecting([("a", 0, 70)]), reader.expecting([("b", 0, 97)]):
            for at in range(97):
                assert read(reader, "b", at, at + 1) == CONTENTS["b"][at : at + 1]
            assert read(reader, "a", 0, 70) == CONTENTS["a"][:70]
    assert store.times("a")[:70] == [1] * 70
    reader.close()


def test_one_fetch_serves_all_who_wait_for_it() -> None:
    for expected in ([("a", 0, 16)], []):
        free = threading.Event()
        store = MemoryStore(CONTENTS, before=lambda *_, free=free: free.wait(20) and None)
        reader = ahead(store, 16 * 2 * CONNECTIONS)
        with reader.expecting(expected):
            threads = [threading.Thread(target=read, args=(reader, "a", 0, 16)) for _ in range(6)]
            for thread in threads:
                thread.start()
            time.sleep(0.02)
            free.set()
            for thread in threads:
                thread.join(20)
            assert store.requests == [("a", 0, 16)]
        reader.close()


def test_streams_that_expect_the_same_share_it() -> None:
    store = MemoryStore(CONTENTS)
    reader = ahead(store, 2000)
    with reader.expecting([("a", 0, 300)]), reader.expecting([("a", 0, 300)]):
        together([lambda: read(reader, "a", 0, 300)] * 2)
    assert store.times("a") == [1] * 300
    reader.close()


def test_leaving_lets_go_and_fetches_no_more() -> None:
    free = threading.Event()
    store = MemoryStore(CONTENTS, before=lambda *_: free.wait(20) and None)
    reader = ahead(store, 32)
    with reader.expecting([("a", 0, 300)]):
        wait_until(lambda: store.reading == CONNECTIONS)
    free.set()
    wait_until(lambda: store.live == 0 and store.reading == 0)
    assert len(store.requests) == CONNECTIONS
    assert read(reader, "a", 0, 300) == CONTENTS["a"]
    reader.close()


# ---- failing


def failing(*, times: int, at: int):
    """Fails the first requests for a byte."""
    left = [times]

    def before(file: str, start: int, stop: int) -> None:
        if file == "a" and start <= at < stop and left[0]:
            left[0] -= 1
            raise CheckpointError(f"byte {at} is out of order")

    return before


def test_what_fails_is_told_to_who_reads_it_and_to_nobody_else() -> None:
    store = MemoryStore(CONTENTS, before=failing(times=1, at=100))
    reader = ahead(store, 800)
    with reader.expecting([("a", 0, 300)]):
        wait_until(lambda: store.bytes_read == 250 and store.reading == 0)  # ahead of all reading
        assert read(reader, "a", 0, 100) == CONTENTS["a"][:100]
        assert read(reader, "a", 150, 300) == CONTENTS["a"][150:]
        with pytest.raises(CheckpointError, match="byte 100"):
            read(reader, "a", 0, 300)
        assert read(reader, "a", 0, 300) == CONTENTS["a"]  # tried again
    wait_until(lambda: store.live == 0)
    reader.close()


def test_an_unexpected_read_that_fails_may_be_tried_again() -> None:
    store = MemoryStore(CONTENTS, before=failing(times=2, at=3))
    reader = ahead(store, 800)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="byte 3"):
            read(reader, "a", 0, 10)
    assert read(reader, "a", 0, 10) == CONTENTS["a"][:10]
    reader.close()


def test_a_failure_that_nobody_reads_is_nobodys() -> None:
    store = MemoryStore(CONTENTS, before=failing(times=99, at=299))
    reader = ahead(store, 800)
    with reader.expecting([("a", 0, 300)]):
        assert read(reader, "a", 0, 250) == CONTENTS["a"][:250]
    reader.close()


def test_an_interrupted_reader_does_not_interrupt_those_who_waited_for_its_block() -> None:
    waiting, asked = threading.Event(), threading.Event()

    def before(file: str, start: int, stop: int) -> None:
        if not asked.is_set():
            asked.set()
            waiting.wait(20)
            raise KeyboardInterrupt

    store = MemoryStore(CONTENTS, before=before)
    reader = ahead(store, 800)
    results: list[object] = []

    def work(signal: bool) -> None:
        try:
            results.append(read(reader, "a", 0, 10))
        except KeyboardInterrupt as error:
            results.append(type(error))

    first = threading.Thread(target=work, args=(True,))
    first.start()
    asked.wait(20)
    second = threading.Thread(target=work, args=(False,))
    second.start()
    time.sleep(0.02)
    waiting.set()
    first.join(20)
    second.join(20)
    assert sorted(results, key=str) == sorted([KeyboardInterrupt, CONTENTS["a"][:10]], key=str)
    reader.close()


def test_closing_wakes_who_waits_and_ends_the_threads() -> None:
    free = threading.Event()
    store = MemoryStore(CONTENTS, before=lambda *_: free.wait(20) and None)
    reader = ahead(store, 160)
    errors: list[Exception] = []

    def work() -> None:
        try:
            read(reader, "a", 0, 1)
        except ValueError as error:
            errors.append(error)

    with reader.expecting([("a", 0, 300)]):
        wait_until(lambda: store.reading == CONNECTIONS)
        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.01)
        reader.close()
        reader.close()
        thread.join(20)
        assert "closed" in str(errors[0])
        with pytest.raises(ValueError, match="closed"):
            read(reader, "b", 0, 1)
    free.set()
    wait_until(lambda: not any(one.name == "safegraft-fetch" for one in threading.enumerate()))
    with reader.expecting([("b", 0, 97)]):
        time.sleep(0.01)
    assert store.live == 0
    assert len(store.requests) == CONNECTIONS


def test_a_process_that_ends_does_not_wait_for_the_network() -> None:
    script = """
import threading
from safegraft.remote.verifying import Verifier
from safegraft.remote.window import ReadAhead
asked = threading.Event()
def read(file, start, stop):
    asked.set()
    threading.Event().wait()
reader = ReadAhead(read, Verifier("here"))
window = reader.expecting([("a", 0, 1 << 30)])
window.__enter__()
asked.wait()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_blocks_are_some_megabytes() -> None:
    requests: list[int] = []

    def fetch(file: str, start: int, stop: int) -> bytes:
        requests.append(stop - start)
        return bytes(stop - start)

    reader = ReadAhead(fetch, Verifier("here"))
    size = 5 * BLOCK_BYTES + 1
    with reader.expecting([("a", 0, size)]):
        reader.read_into("a", 0, memoryview(bytearray(size)))
    assert sorted(requests) == [1, *[BLOCK_BYTES] * 5]
    reader.close()


def test_there_has_to_be_some_memory() -> None:
    with pytest.raises(ValueError, match="at least a byte"):
        ahead(MemoryStore(CONTENTS), 0)
