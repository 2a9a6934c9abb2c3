"""Whatever happens in a command ends as one message on stderr and one of five exit codes."""

import errno
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import grpc
import pytest

from safegraft.cli import main
from safegraft.cli.root import COMMANDS, Entry
from safegraft.errors import Problem, RecipeError, SafegraftError

Raise = Callable[[BaseException], int]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Iterator[Raise]:
    """Run a command that raises the given exception; returns the exit code."""

    def run(error: BaseException) -> int:
        @click.command()
        def command() -> None:
            raise error

        module = types.ModuleType("a_raising_command")
        vars(module)["command"] = command
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(COMMANDS, "raise", Entry(module.__name__, "command", "Raises."))
        return main(["raise"])

    monkeypatch.delenv("SAFEGRAFT_TRACEBACK", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def error_classes(root: type[SafegraftError] = SafegraftError) -> Iterator[type[SafegraftError]]:
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


@pytest.mark.parametrize("kind", sorted(set(error_classes()), key=lambda kind: kind.__name__))
def test_an_error_of_ours_has_its_own_exit_code(
    kind: type[SafegraftError], raising: Raise, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(kind("what is wrong")) == kind.exit_code
    assert capsys.readouterr() == ("", "error: what is wrong\n")


def test_every_problem_has_a_line_of_its_own(raising: Raise, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(RecipeError([Problem("r.yml:1", "first"), Problem("r.yml:9", "second")])) == 2
    assert capsys.readouterr().err == "error: 2 problems\n  r.yml:1: first\n  r.yml:9: second\n"


def test_a_message_cannot_command_the_terminal(raising: Raise, capsys: pytest.CaptureFixture[str]) -> None:
    raising(RecipeError("\x1b]0;title\x07"))
    assert capsys.readouterr().err == "error: \\x1b]0;title\\x07\n"


class ForeignCallError(grpc.RpcError, grpc.Call):  # type: ignore[misc]
    """What gRPC raises when nobody answers."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "connection refused"

    def trailing_metadata(self) -> tuple[()]:
        return ()

    def initial_metadata(self) -> tuple[()]:
        return ()

    is_active = cancel = time_remaining = add_callback = lambda *_: None


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 1, "interrupted"),
        (MemoryError(), 1, "error: out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "some/file"), 1, "error: some/file: No space left on device"),
        (OSError("in words"), 1, "error: in words"),
        (click.UsageError("no such thing"), 2, "error: no such thing"),
        (click.BadParameter("not a size"), 2, "error: Invalid value: not a size"),
        (click.ClickException("stopped"), 1, "error: stopped"),
        (RecursionError("too deep"), 1, "internal error: RecursionError: too deep; run with SAFEGRAFT_TRACEBACK=1"),
        (AssertionError(), 1, "internal error: AssertionError; run with SAFEGRAFT_TRACEBACK=1"),
        (ForeignCallError(), 4, "error: UNAVAILABLE: connection refused"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_of_others_is_shown_without_a_traceback(
    error: BaseException, code: int, says: str, raising: Raise, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == code
    out, err = capsys.readouterr()
    assert says in err
    assert "Traceback" not in out + err
    assert out == ""


@pytest.mark.parametrize("error", [RecipeError("wrong"), ZeroDivisionError("zero")])
def test_a_traceback_comes_when_asked_for(
    error: Exception, raising: Raise, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFEGRAFT_TRACEBACK", "1")
    raising(error)
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "SAFEGRAFT_TRACEBACK" not in err


def python(code: str, **streams: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], text=True, check=False, **streams)  # type: ignore[call-overload]


METHODS = "import sys; from safegraft.cli import main; sys.exit(main(['methods', '--json']))"


def test_a_reader_that_went_away_is_no_news() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = python(METHODS, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_result_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = python(METHODS, stdout=full.fileno(), stderr=subprocess.PIPE)
    assert done.stderr == "error: standard output: cannot write: No space left on device\n"
    assert done.returncode == 1


def test_a_name_the_terminal_cannot_encode_is_escaped() -> None:
    code = "from safegraft.cli import main; from safegraft.cli.terminal import say; main(['--version']); say('\u2192')"
    latin = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", code], env=latin, capture_output=True, check=True)
    assert done.stdout.endswith(b"\\u2192\n")
