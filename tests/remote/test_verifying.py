"""The running digest: right bytes in their turn are verified, wrong ones found, and nothing is claimed otherwise."""

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memorystore import together

from safegraft.errors import InputChangedError
from safegraft.remote.verifying import Verifier

CONTENT = random.Random(1).randbytes(60)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def verifier(sha256: str = SHA256) -> Verifier:
    one = Verifier("org/model")
    one.add("w.safetensors", len(CONTENT), sha256)
    return one


def passing(one: Verifier, start: int, stop: int, content: bytes = CONTENT) -> None:
    piece = content[start:stop]
    one.arrived("w.safetensors", start, piece)
    one.digest("w.safetensors")
    one.left("w.safetensors", start, piece)


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Pieces that come, overlap, come again and go."""
    found = []
    for _ in range(draw(st.integers(0, 30))):
        start = draw(st.integers(0, 5)) * 10  # often the same
        found.append((draw(st.sampled_from(["come", "come", "go"])), start, draw(st.integers(start + 1, len(CONTENT)))))
    return found


@given(steps=steps())
@settings(max_examples=300, deadline=None)
def test_nothing_is_claimed_that_was_not_seen_in_order(steps: list[tuple[str, int, int]]) -> None:
    """Against a model that knows which pieces are here, and up to where bytes have had their turn."""
    one = verifier()
    here: dict[int, bytes] = {}
    position = 0
    for kind, start, stop in steps:
        piece = CONTENT[start:stop]
        if kind == "come":
            one.arrived("w.safetensors", start, piece)
            if stop > position and len(piece) > len(here.get(start, b"")):
                here[start] = piece
        elif start in here:
            one.left("w.safetensors", start, here.pop(start))
        one.digest("w.safetensors")
        while (turn := next((at for at in here if at <= position), None)) is not None:
            position = max(position, turn + len(here.pop(turn)))
        assert one.verified() == {"w.safetensors": position == len(CONTENT)}
        one.require_all_sound()
    passing(one, 0, len(CONTENT))  # in the end everything passes once more
    assert one.verified() == {"w.safetensors": True}


@given(order=st.permutations(range(12)))
def test_pieces_that_stay_may_come_in_any_order(order: list[int]) -> None:
    one = verifier()
    for index in order:
        assert one.verified() == {"w.safetensors": False}
        one.arrived("w.safetensors", index * 5, CONTENT[index * 5 : index * 5 + 5])
    one.require_all_sound()  # hashes what nobody has yet
    assert one.verified() == {"w.safetensors": True}


def test_what_is_let_go_before_its_turn_has_to_pass_again() -> None:
    one = verifier()
    passing(one, 30, 60)
    passing(one, 0, 30)
    assert one.verified() == {"w.safetensors": False}
    passing(one, 20, 60)
    assert one.verified() == {"w.safetensors": True}


@pytest.mark.parametrize("flipped", [0, 31, 59])
def test_one_wrong_bit_is_found_when_the_last_byte_has_passed(flipped: int) -> None:
    wrong = bytearray(CONTENT)
    wrong[flipped] ^= 1
    one = verifier()
    one.add("other.safetensors", 4, hashlib.sha256(b"good").hexdigest())
    passing(one, 0, 59, bytes(wrong))
    one.require_sound("w.safetensors")  # nothing is known yet
    passing(one, 59, 60, bytes(wrong))
    for look in (one.require_all_sound, lambda: one.require_sound("w.safetensors")):
        with pytest.raises(InputChangedError, match=r"org/model/w\.safetensors: does not have the sha256"):
            look()
    one.require_sound("other.safetensors")
    assert one.verified() == {"w.safetensors": False, "other.safetensors": False}


def test_all_wrong_files_are_named_at_once() -> None:
    one = verifier(sha256="0" * 64)
    one.add("other.safetensors", 3, "0" * 64)
    passing(one, 0, 60)
    one.arrived("other.safetensors", 0, b"bad")
    with pytest.raises(InputChangedError) as caught:
        one.require_all_sound()
    assert [problem.where for problem in caught.value.problems] == [
        "org/model/w.safetensors",
        "org/model/other.safetensors",
    ]


def test_files_without_a_known_digest_are_let_pass() -> None:
    one = Verifier("org/model")
    passing(one, 0, 60)
    one.require_all_sound()
    assert one.verified() == {}


def test_many_threads_hash_one_file() -> None:
    content = random.Random(2).randbytes(1 << 20)
    size = len(content) // 64
    pieces = [(at, content[at : at + size]) for at in range(0, len(content), size)]
    for seed in range(5):
        random.Random(seed).shuffle(pieces)
        one = Verifier("org/model")
        one.add("w", len(content), hashlib.sha256(content).hexdigest())

        def work(own: list[tuple[int, bytes]], one: Verifier = one) -> None:
            for start, piece in own:
                one.arrived("w", start, piece)
                one.digest("w")

        together([lambda own=pieces[index::8], work=work: work(own) for index in range(8)])
        assert one.verified() == {"w": True}


def test_what_is_let_go_in_its_turn_has_been_hashed_by_then() -> None:
    """Pieces can come faster than they are hashed, and leave at once."""
    one = verifier()
    for start in range(0, len(CONTENT), 10):
        piece = CONTENT[start : start + 10]
        one.arrived("w.safetensors", start, piece)
        one.left("w.safetensors", start, piece)  # nobody has called `digest`
    assert one.verified() == {"w.safetensors": True}
