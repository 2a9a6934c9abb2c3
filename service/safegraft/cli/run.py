"""main(): runs a command and turns whatever happens into a message and an exit code.

No exception leaves this module, so a user never sees a traceback unless SAFEGRAFT_TRACEBACK asks
for it.
"""

import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

import click

from safegraft.cli.root import root
from safegraft.cli.terminal import note
from safegraft.errors import SafegraftError

TRACEBACK = "SAFEGRAFT_TRACEBACK"
FAILED = 1

# Imports and plans make many objects and hardly a cycle: looking for some as often as by default takes a tenth of their
# time.
FEWER_COLLECTIONS = (50_000, 20, 20)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: sys.argv) and return its exit code."""
    stdout: TextIO = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")  # a name the terminal cannot encode is no reason to fail
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt, as Ctrl-C does
    gc.set_threshold(*FEWER_COLLECTIONS)
    code = _run(arguments)
    flushed = _flush()
    return code or flushed


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = root.main(args=arguments, prog_name="safegraft", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except SafegraftError as error:
        return _fail(error, error.exit_code)
    except click.UsageError as error:
        usage = error.ctx.get_usage() + "\n" if error.ctx else ""
        return _fail(error, error.exit_code, f"{usage}error: {error.format_message()}")
    except click.ClickException as error:
        return _fail(error, error.exit_code, f"error: {error.format_message()}")
    except (click.Abort, KeyboardInterrupt) as error:
        return _fail(error, FAILED, "interrupted")
    except SystemExit as error:  # click's answer to a closed pipe on stdout
        return error.code if isinstance(error.code, int) else FAILED
    except MemoryError as error:
        return _fail(error, FAILED, "error: out of memory")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(error, FAILED, f"error: {where}{error.strerror or error}")
    except Exception as error:
        return _unexpected(error)


def _fail(error: BaseException, code: int, message: str | None = None) -> int:
    if os.environ.get(TRACEBACK):
        note("".join(traceback.format_exception(error)))
    note(message or _described(error))
    return code


def _described(error: BaseException) -> str:
    """One problem in a line; several as a list, so that each stands out."""
    lines = str(error).splitlines()
    if isinstance(error, SafegraftError) and len(error.problems) > 1:
        return f"error: {len(error.problems)} problems\n" + "\n".join(f"  {line}" for line in lines)
    return "error: " + "\n  ".join(lines)


def _unexpected(error: Exception) -> int:
    """What nobody foresaw."""
    if "grpc" in sys.modules:
        import grpc

        if isinstance(error, grpc.RpcError):
            from safegraft.rpc.status import from_rpc_error

            mapped = from_rpc_error(error)
            return _fail(error, mapped.exit_code, _described(mapped))
    name = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    hint = "" if os.environ.get(TRACEBACK) else f"; run with {TRACEBACK}=1 to see the traceback"
    return _fail(error, FAILED, f"internal error: {name}{hint}")


def _flush() -> int:
    """Write out what is still buffered: the interpreter would report a failure at exit as a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return 0
