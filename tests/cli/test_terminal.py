"""Nothing that a name can hold moves the cursor, and columns line up."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegraft.cli.progress import Lines, meter
from safegraft.cli.terminal import printable, say_json, table


@given(st.text())
def test_only_printable_characters_and_line_breaks_come_through(text: str) -> None:
    assert all(char.isprintable() or char in "\n\t" for char in printable(text))


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_what_is_printable_is_untouched(text: str) -> None:
    assert printable(text) == text


def test_escape_sequences_are_shown_not_obeyed() -> None:
    assert printable("\x1b[31mred\x07\x9b\u202eabc\udc80") == "\\x1b[31mred\\x07\\x9b\\u202eabc\\udc80"


def test_json_holds_no_raw_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"name": "\x1b[2J\u202e"}
    say_json(document)
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert "\x1b" not in printed
    assert json.loads(printed) == document


def test_columns_line_up_and_lines_do_not_end_in_blanks() -> None:
    lines = table(["A", "LONGER", "LAST"], [["first cell", "x", "end"], ["\x1b", "yy", ""]]).splitlines()
    assert [line.find(word) for line, word in zip(lines, ["LONGER", "x", "yy"], strict=True)] == [12, 12, 12]
    assert [line == line.rstrip() for line in lines[:2]] == [True, True]


def test_lines_are_few_and_the_last_one_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("merging", seconds=3600)
    for done in range(1001):
        lines(done * 1000, 1_000_000)
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("merging: 100% (1.00 MB of 1.00 MB")


def test_a_line_a_percent_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("pulling", seconds=0)
    for done in range(100_001):
        lines(done, 100_000)
    percents = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert percents == [f"{percent}%" for percent in range(101)]


def test_an_empty_transfer_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    Lines("pulling")(0, 0)
    assert capsys.readouterr().err.startswith("pulling: 100%")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_starts_where_an_earlier_run_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with meter("merging") as show:
        assert terminal.getvalue() == ""
        show(500_000, 1_000_000, "model.safetensors")
        shown = terminal.getvalue()
        show(1_000_000, 1_000_000, "model.safetensors")
    assert "merging:  50%" in shown
    assert "500k/1.00M" in shown
    assert terminal.getvalue().endswith("\r")


def test_elsewhere_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with meter("merging") as show:
        show(0, 10)
        show(10, 10)
    assert stream.getvalue().startswith("merging: 100%")
    assert "\r" not in stream.getvalue()
