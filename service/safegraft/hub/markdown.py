"""Markdown that strangers' words cannot get out of: code spans, table cells, code blocks, tables, links to the Hub.

Knows nothing of what is written with it.
"""

import re
from collections.abc import Sequence

_HUB_MODEL = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@([0-9a-f]{40})", re.ASCII)  # a pinned Hub model
_URL = re.compile(r"https?://[\w./:%?&=#~+-]+", re.ASCII)
HUB = "https://huggingface.co"
_COMMIT = 12  # digits of a commit that are shown: enough to compare by eye; its link has them all


def code(text: str) -> str:
    """Any text as a code span."""
    text = printable(text).strip() or " "
    ticks = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def cell(text: str) -> str:
    """Any text as a code span in a table, where a bar ends the cell even within code."""
    return code(text).replace("|", "\\|")


def fence(text: str, language: str = "text") -> str:
    """Any text as a code block."""
    ticks = "`" * max(3, _longest_run(text) + 1)
    lines = "\n".join(printable(line) for line in text.rstrip("\n").split("\n"))
    return f"{ticks}{language}\n{lines}\n{ticks}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def details(summary: str, body: str) -> str:
    """A part that readers unfold. summary: our own words."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def linked(words: str, url: str) -> str:
    """A link, where the URL is a plain one; else both as they are, in code spans."""
    return f"[{words}]({url})" if _URL.fullmatch(url) else f"{words}: {code(url)}"


def hub_model(name: str) -> tuple[str, str] | None:
    """The Hub name and the commit of a model that goes by ORG/NAME@COMMIT; None of any other."""
    match = _HUB_MODEL.fullmatch(name)
    return (match[1], match[2]) if match else None


def model_link(name: str) -> str:
    """A model's public name as a cell: a link to its commit where it is one of the Hub."""
    found = hub_model(name)
    if found is None:
        return cell(name)
    model, commit = found
    return f"[{cell(model)}]({HUB}/{model}) at [{cell(commit[:_COMMIT])}]({HUB}/{model}/tree/{commit})"


def listed(items: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def counted(count: int, thing: str) -> str:
    """'1 tensor', '2 tensors'."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def printable(text: str) -> str:
    """Without control and direction characters, which can make text look like other text, and without the beginnings
    of comments, in which a card keeps its places."""
    visible = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return visible.replace("<!--", "<! --")


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
