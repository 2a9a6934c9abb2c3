"""YAML text, or a mapping made in Python, as plain data in which every key and item has its line.

What comes out holds nothing but None, booleans, numbers, text, lists and mappings with text keys, within
bounds on size, depth and count: a stranger's document can be wrong, but not dangerous. Knows no recipe.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import yaml

from safegraft.errors import Problem, RecipeError
from safegraft.recipe.model import At, nearest_line, place

MAX_CHARACTERS = 1_000_000
MAX_NODES = 50_000  # counted after aliases are expanded
MAX_DEPTH = 16  # a recipe needs 11
MAX_PROBLEMS = 100  # shown; the rest are counted
_LONGEST_NUMBER = 100  # characters

_CORE = "tag:yaml.org,2002:"
_TEXT_TAGS = {_CORE + "str", _CORE + "timestamp", _CORE + "value", _CORE + "yaml", _CORE + "merge"}
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # controls, and halves of surrogate pairs


class Findings:
    """The problems of one recipe, each with its place; gathered first, raised together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[At, int] = {}
        self._problems: list[tuple[int, Problem]] = []
        self._unreadable: set[At] = set()

    def add(self, at: At, message: str) -> None:
        """Report the value at `at`, unless it could not even be read: one reason is enough."""
        if at not in self._unreadable:
            line = nearest_line(self.lines, at) or 0
            self._problems.append((line, Problem(place(self.name, self.lines, at), message)))

    def add_unreadable(self, at: At, message: str) -> None:
        """Report a value of which something else stands in the data."""
        self.add(at, message)
        self._unreadable.add(at)

    def raise_any(self) -> None:
        """Raise RecipeError with all problems, in the order of their lines, if there are any."""
        if not self._problems:
            return
        problems = [problem for _, problem in sorted(self._problems, key=lambda item: item[0])]
        shown = problems[:MAX_PROBLEMS]
        if len(problems) > MAX_PROBLEMS:
            shown.append(Problem(self.name, f"and {len(problems) - MAX_PROBLEMS} more problems"))
        raise RecipeError(shown)


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data, the YAML text it stands for, and what was wrong with it so far."""

    data: Any
    text: str
    findings: Findings


def from_text(text: str, name: str) -> Document:
    """Read YAML. Raises RecipeError when nothing can be made of it; lesser problems are left in `findings`."""
    _check_size(text, name)
    findings = Findings(name)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = None if node is None else _FromNodes(loader, findings).value(node, ())
    except yaml.YAMLError as error:
        raise RecipeError(_syntax_problem(error, text, name)) from error
    return Document(data, text, findings)


def from_mapping(mapping: Mapping[Any, Any], name: str) -> Document:
    """Take a mapping made in Python. Paths may be path objects; lists may be tuples. It has no lines."""
    findings = Findings(name)
    data = _FromPython(findings).value(mapping, ())
    text: str = yaml.dump(data, Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=True, width=math.inf)
    _check_size(text, name)
    return Document(data, text, findings)


def unsafe_character(text: str) -> str | None:
    """The first character that no name may hold (a control, half a surrogate pair), or None."""
    found = _UNSAFE.search(text)
    return found.group() if found else None


def _check_size(text: str, name: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(Problem(name, f"is larger than {MAX_CHARACTERS:,} characters: this is not a recipe"))


def _syntax_problem(error: yaml.YAMLError, text: str, name: str) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        return Problem(f"{name}:{line}:{column}", f"the character {text[error.position]!r} is not allowed in YAML")
    assert isinstance(error, yaml.MarkedYAMLError)  # PyYAML raises no third kind while composing
    mark = error.problem_mark or error.context_mark
    position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    if isinstance(error, _ExcessError):
        return Problem(f"{name}{position}", str(error.problem))
    context = f"{error.context}: " if error.context else ""
    return Problem(f"{name}{position}", f"not valid YAML: {context}{error.problem}")


class _ExcessError(yaml.MarkedYAMLError):
    """Valid YAML, and more of it than a recipe can need."""


class _Loader(yaml.SafeLoader):
    """Composes nodes within the bounds, so that a hostile document fails before it costs anything."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._bounds = _Bounds()
        self._untyped: Any = self  # the stubs leave PyYAML's parser and resolver without types

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        excess = self._bounds.enter()
        if excess:
            raise _ExcessError(problem=excess, problem_mark=self._untyped.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._bounds.leave()
        return node

    def own_tag(self, node: yaml.ScalarNode) -> str:
        """The tag that a scalar has by its text alone."""
        return self._untyped.resolve(yaml.ScalarNode, node.value, (node.style is None, True))


class _Bounds:
    """Counts the values of a document while it is walked."""

    def __init__(self) -> None:
        self._depth = 0
        self._count = 0

    def enter(self) -> str | None:
        """Step into a value. Returns what is too much, if anything is."""
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH:
            return f"nested more than {MAX_DEPTH} deep: this is not a recipe"
        if self._count > MAX_NODES:
            return f"more than {MAX_NODES:,} values: this is not a recipe"
        return None

    def leave(self) -> None:
        self._depth -= 1


class _FromNodes:
    """YAML nodes to plain data. Aliases are expanded here, and counted as often as they are used."""

    def __init__(self, loader: _Loader, findings: Findings) -> None:
        self._loader = loader
        self._findings = findings
        self._bounds = _Bounds()

    def value(self, node: yaml.Node, at: At) -> Any:
        excess = self._bounds.enter()
        if excess:
            raise _ExcessError(problem=excess, problem_mark=node.start_mark)
        self._findings.lines.setdefault(at, _line(node))
        if isinstance(node, yaml.MappingNode):
            value: Any = self._mapping(node, at)
        elif isinstance(node, yaml.SequenceNode):
            self._check_tag(node, _CORE + "seq", at)
            value = [self.value(item, (*at, index)) for index, item in enumerate(node.value)]
        else:
            assert isinstance(node, yaml.ScalarNode)  # PyYAML has no fourth kind
            value = self._scalar(node, at)
        self._bounds.leave()
        return value

    def _mapping(self, node: yaml.MappingNode, at: At) -> dict[str, Any]:
        self._check_tag(node, _CORE + "map", at)
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        merge_values = [value_node for key_node, value_node in node.value if key_node.tag == _CORE + "merge"]
        if len(merge_values) > 1:
            self._findings.add(at, "`<<` is given twice; give it a list of mappings")
        for value_node in merge_values:  # first: a mapping's own keys win wherever they stand
            merged |= self._merge_key(value_node, at)
        for key_node, value_node in node.value:
            if key_node.tag == _CORE + "merge":
                continue
            here = (*at, _key(key_node))
            first = self._findings.lines.get(here) if _key(key_node) in own else None
            self._findings.lines[here] = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._findings.add_unreadable(here, "a key must be plain text, not a list or a mapping")
            elif first:
                self._findings.add(here, f"is given twice, first on line {first}")
            else:
                self._check_scalar_tag(key_node, here)
            own[_key(key_node)] = self.value(value_node, here)
        return merged | own

    def _merge_key(self, node: yaml.Node, at: At) -> dict[str, Any]:
        """YAML's `<<: *anchor`, or a list of such, of which the first wins."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for part in parts:
            value = self.value(part, at)
            if isinstance(value, dict):
                merged = cast(dict[str, Any], value) | merged
            else:
                self._findings.add(at, "`<<` takes a mapping, or a list of mappings")
        return merged

    def _scalar(self, node: yaml.ScalarNode, at: At) -> Any:
        if not self._check_scalar_tag(node, at) or node.tag in _TEXT_TAGS:
            return node.value
        if node.tag == _CORE + "null":
            return None
        if node.tag == _CORE + "bool":
            return self._loader.construct_yaml_bool(node)
        return self._number(node, at)

    def _number(self, node: yaml.ScalarNode, at: At) -> int | float | None:
        if len(node.value) <= _LONGEST_NUMBER:
            try:
                if node.tag == _CORE + "int":
                    return self._loader.construct_yaml_int(node)
                return self._loader.construct_yaml_float(node)
            except ValueError:  # "0x_": YAML's pattern for numbers lets through what is none
                pass
        self._findings.add_unreadable(at, f"{brief(node.value)} is not a number that can be read; put text in quotes")
        return None

    def _check_scalar_tag(self, node: yaml.ScalarNode, at: At) -> bool:
        """A tag that the text does not have by itself was written out, and only !!str is harmless."""
        return node.tag == _CORE + "str" or self._check_tag(node, self._loader.own_tag(node), at)

    def _check_tag(self, node: yaml.Node, expected: str, at: At) -> bool:
        if node.tag != expected:
            self._findings.add_unreadable(at, f"YAML tags such as {brief(node.tag)} are not allowed in a recipe")
        return node.tag == expected


class _FromPython:
    """Mappings, sequences and scalars made in Python to plain data of exactly the types YAML gives."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._bounds = _Bounds()

    def value(self, value: Any, at: At) -> Any:
        excess = self._bounds.enter()
        if excess:
            raise RecipeError(Problem(self._findings.name, excess))
        plain = self._plain(value, at)
        self._bounds.leave()
        return plain

    def _plain(self, value: Any, at: At) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value)  # of subclasses too: PyYAML writes none
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, os.PathLike):
            return os.fsdecode(cast(os.PathLike[str], value))
        if isinstance(value, Mapping):
            return self._mapping(cast(Mapping[Any, Any], value), at)
        if isinstance(value, list | tuple):
            items = cast(Sequence[Any], value)
            return [self.value(item, (*at, index)) for index, item in enumerate(items)]
        kind = type(cast(object, value)).__name__
        self._findings.add_unreadable(at, f"expected text, a number, a list or a mapping, got {kind}")
        return None

    def _mapping(self, value: Mapping[Any, Any], at: At) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key, item in value.items():
            if isinstance(key, str):
                plain[str(key)] = self.value(item, (*at, str(key)))
            else:
                self._findings.add(at, f"a key must be text, not {brief(repr(key))}")
        return plain


def brief(text: str, limit: int = 60) -> str:
    """Text in quotes, cut to what a message can hold."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def _key(node: yaml.Node) -> str:
    """A key as written: `1` and `null` are texts here. Lists and mappings have none."""
    return node.value if isinstance(node, yaml.ScalarNode) else "?"


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
