"""Finds plugins by the entry-point group `safegraft`; a broken one is recorded, never fatal."""

import difflib
import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any, Generic, NamedTuple, TypeVar

import pluggy
from pydantic import BaseModel

from safegraft.errors import PluginError
from safegraft.methods import hookspecs
from safegraft.methods.contract import Granularity, MergeMethod, Modifier, Requirements
from safegraft.methods.extensions import CheckpointSource, Publisher, TensorMap

GROUP = "safegraft"
STRICT = "SAFEGRAFT_STRICT_PLUGINS"

Brought = TypeVar("Brought")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point: where it came from, the names of what it brought, or why it could not be used."""

    name: str
    module: str
    distribution: str
    version: str
    methods: tuple[str, ...]
    error: str | None
    modifiers: tuple[str, ...] = ()
    tensor_maps: tuple[str, ...] = ()
    checkpoint_sources: tuple[str, ...] = ()
    publishers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a class must have to be registered. `verb`: its abstract method."""

    parent: type
    noun: str
    verb: str
    attributes: Mapping[str, type]
    parameters: tuple[str, ...] = ()


_TEXTS: Mapping[str, type] = {"name": str, "summary": str}
_PAPER: Mapping[str, type] = {**_TEXTS, "reference": str}
# By the hook that hands them over.
_KINDS = {
    "merge_methods": _Kind(
        MergeMethod,
        "method",
        "merge",
        {**_PAPER, "requires": Requirements, "granularity": Granularity},
        ("Parameters", "InputParameters"),
    ),
    "modifiers": _Kind(Modifier, "modifier", "modify", _PAPER, ("Parameters",)),
    "tensor_maps": _Kind(TensorMap, "tensor map", "prefixes", _TEXTS),
    "checkpoint_sources": _Kind(CheckpointSource, "checkpoint source", "open", _TEXTS),
    "publishers": _Kind(Publisher, "publisher", "publish", _TEXTS),
}


@dataclass
class Shelf(Generic[Brought]):
    """All of one kind, by name: an instance each, and the plugin that brought it."""

    noun: str
    _held: dict[str, tuple[Brought, Plugin]] = field(default_factory=dict[str, tuple[Brought, Plugin]])

    def names(self) -> list[str]:
        return sorted(self._held)

    def get(self, name: str) -> Brought | None:
        found = self._held.get(name)
        return found[0] if found else None

    def plugin_of(self, name: str) -> Plugin:
        return self._held[name][1]

    def put(self, name: str, one: Brought, plugin: Plugin) -> None:
        """Raises PluginError when the name is taken."""
        if name in self._held:
            other = self._held[name][1]
            raise PluginError(f"{self.noun} {name!r} is already registered by {other.module} ({other.distribution})")
        self._held[name] = (one, plugin)

    def copy(self) -> "Shelf[Brought]":
        return Shelf(self.noun, dict(self._held))

    def suggest(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._held, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        return f"{meant}{self.noun.capitalize()}s here: {', '.join(self.names()) or 'none'}"


class _Origin(NamedTuple):
    """The distribution that an entry point is of. safegraft's own come first: a stranger cannot take their names."""

    name: str
    version: str


class Registry:
    """What plugins have brought. Build it once with `Registry.discover()`."""

    def __init__(self) -> None:
        self.methods: Shelf[MergeMethod] = Shelf("method")
        self.modifiers: Shelf[Modifier] = Shelf("modifier")
        self.tensor_maps: Shelf[TensorMap] = Shelf("tensor map")
        self.sources: Shelf[CheckpointSource] = Shelf("checkpoint source")
        self.publishers: Shelf[Publisher] = Shelf("publisher")
        self.plugins: list[Plugin] = []

    @classmethod
    def discover(cls, entries: Iterable[EntryPoint] | None = None) -> "Registry":
        """Load every plugin. With SAFEGRAFT_STRICT_PLUGINS=1 a broken one raises PluginError."""
        registry = cls()
        found = list(entry_points(group=GROUP) if entries is None else entries)
        origins: dict[Distribution | None, _Origin] = {None: _Origin("unknown", "unknown")}
        for entry in found:
            if entry.dist is not None and entry.dist not in origins:  # reading its metadata takes a millisecond
                origins[entry.dist] = _Origin(entry.dist.name, entry.dist.version)
        for entry in sorted(found, key=lambda one: (origins[one.dist].name != "safegraft", one.name, one.value)):
            registry._load(entry, origins[entry.dist])
        broken = [plugin for plugin in registry.plugins if plugin.error]
        if broken and os.environ.get(STRICT, "") not in ("", "0"):
            raise PluginError("; ".join(f"plugin {plugin.name}: {plugin.error}" for plugin in broken))
        return registry

    def names(self) -> list[str]:
        """Of the merge methods."""
        return self.methods.names()

    def get(self, name: str) -> MergeMethod | None:
        return self.methods.get(name)

    def plugin_of(self, name: str) -> Plugin:
        return self.methods.plugin_of(name)

    def suggest(self, name: str, shelf: "Shelf[Any] | None" = None) -> str:
        """A ready-made end of an error message for an unknown method, or for one of another shelf."""
        broken = [plugin.name for plugin in self.plugins if plugin.error]
        more = f". Plugins that could not be used ({', '.join(broken)}): see `safegraft plugins`" if broken else ""
        return (shelf or self.methods).suggest(name) + more

    def add(self, method: type[MergeMethod], plugin: Plugin) -> None:
        """Register one method; raises PluginError when the class is incomplete or the name is taken."""
        self._put("merge_methods", method, plugin)

    def add_modifier(self, modifier: type[Modifier], plugin: Plugin) -> None:
        """Likewise one modifier."""
        self._put("modifiers", modifier, plugin)

    def _put(self, hook: str, brought: Any, plugin: Plugin) -> None:
        _check_brought(hook, brought)
        self._shelves()[hook].put(brought.name, brought(), plugin)

    def _shelves(self) -> dict[str, Shelf[Any]]:
        return {
            "merge_methods": self.methods,
            "modifiers": self.modifiers,
            "tensor_maps": self.tensor_maps,
            "checkpoint_sources": self.sources,
            "publishers": self.publishers,
        }

    def _take(self, shelves: Mapping[str, Shelf[Any]]) -> None:
        self.methods, self.modifiers = shelves["merge_methods"], shelves["modifiers"]
        self.tensor_maps = shelves["tensor_maps"]
        self.sources, self.publishers = shelves["checkpoint_sources"], shelves["publishers"]

    def _load(self, entry: EntryPoint, origin: "_Origin") -> None:
        def plugin(brought: Mapping[str, list[Any]], error: str | None = None) -> Plugin:
            names = {hook: tuple(one.name for one in brought.get(hook, ())) for hook in _KINDS}
            methods = names.pop("merge_methods")
            return Plugin(entry.name, entry.value, origin.name, origin.version, methods, error, **names)

        try:
            brought = _ask(entry)
            record = plugin(brought)
            # All or nothing: half a plugin would be harder to understand than none.
            trial = Registry()
            trial._take({hook: shelf.copy() for hook, shelf in self._shelves().items()})
            for hook, classes in brought.items():
                for one in classes:
                    trial._put(hook, one, record)
            self._take(trial._shelves())
        except (Exception, SystemExit) as error:  # a stranger's module may raise anything; it is shown, not hidden
            message = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            record = plugin({}, error=message)
        self.plugins.append(record)


def _ask(entry: EntryPoint) -> dict[str, list[Any]]:
    """Import one plugin and ask its hooks; a pluggy manager of its own validates their names."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(entry.load(), name=entry.name)
    manager.check_pending()
    brought: dict[str, list[Any]] = {}
    for hook in _KINDS:
        answers: list[Any] = vars(manager.hook)[hook]()
        brought[hook] = [one for answer in answers for one in answer]
    if not any(brought.values()):
        raise PluginError("brings nothing: it needs a function merge_methods(), marked @safegraft.hookimpl")
    for hook, classes in brought.items():
        for one in classes:
            _check_brought(hook, one)
    return brought


def _check_brought(hook: str, one: Any) -> None:
    if hook == "merge_methods":
        check_class(one)
    else:
        _check(one, _KINDS[hook])


def check_class(method: Any) -> None:
    """Raise PluginError unless `method` is a complete MergeMethod class."""
    _check(method, _KINDS["merge_methods"])
    requires: Requirements = method.requires
    shown = ("input", *(("base",) if requires.base == "required" else ()), *requires.roles)
    for one in requires.calibration:
        if one.model not in shown:
            raise PluginError(
                f"{method.__name__}.requires.calibration {one.name!r} is of {one.model!r}, and it can be of "
                f"{', '.join(shown)}"
            )


def _check(brought: Any, kind: _Kind) -> None:
    if not (isinstance(brought, type) and issubclass(brought, kind.parent)):
        raise PluginError(f"{brought!r} is not a subclass of safegraft.methods.{kind.parent.__name__}")
    found: dict[str, Any] = {}
    for ancestor in reversed(brought.__mro__):
        found.update(vars(ancestor))
    missing = [attribute for attribute in kind.attributes if attribute not in found]
    if missing:
        raise PluginError(f"{brought.__name__} lacks {', '.join(missing)}")
    for attribute, type_ in kind.attributes.items():
        if not isinstance(found[attribute], type_) or not found[attribute]:
            raise PluginError(f"{brought.__name__}.{attribute} must be a {type_.__name__}, not {found[attribute]!r}")
    if inspect.isabstract(brought):
        raise PluginError(f"{brought.__name__} does not implement {kind.verb}()")
    for attribute in kind.parameters:
        if not _is_strict_model(found[attribute]):
            raise PluginError(f"{brought.__name__}.{attribute} must be a pydantic model with extra='forbid'")


def _is_strict_model(parameters: object) -> bool:
    return (
        inspect.isclass(parameters)
        and issubclass(parameters, BaseModel)
        and parameters.model_config.get("extra") == "forbid"
    )
