"""What reaches the terminal: text without control characters, tables, JSON.

Names come from recipes, checkpoint headers and servers. Any of them may hold escape sequences
that would move the cursor or recolour the screen, so nothing is printed unescaped.
"""

import json
from collections.abc import Sequence
from typing import Any

import click

from safegraft.errors import OutputError


def printable(text: str) -> str:
    """The text with everything but line breaks, tabs and printable characters escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def say(text: str) -> None:
    """A result, on stdout. Raises OutputError when it cannot be written."""
    _print(printable(text))


def note(text: str) -> None:
    """Anything that is not the result, on stderr."""
    click.echo(printable(text), err=True)


def say_json(document: Any) -> None:
    """A result for a program. JSON escapes what a terminal would obey."""
    _print(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False))


def _print(text: str) -> None:
    try:
        click.echo(text)
    except BrokenPipeError:
        raise  # the reader has seen enough: click ends the program without a word
    except OSError as error:
        raise OutputError(f"standard output: cannot write: {error.strerror}") from error


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, with nothing after the last."""
    lines = [header, *rows]
    widths = [max(len(printable(line[column])) for line in lines) for column in range(len(header) - 1)]
    return "\n".join(
        "  ".join(printable(cell).ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)).rstrip()
        for line in lines
    )
