"""Finds plugins by the entry-point group `safegraft`; a broken one is recorded, never fatal."""

import difflib
import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy
from pydantic import BaseModel

from safegraft.errors import PluginError
from safegraft.methods import hookspecs
from safegraft.methods.contract import Granularity, MergeMethod, Modifier, Requirements

GROUP = "safegraft"
STRICT = "SAFEGRAFT_STRICT_PLUGINS"


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point: where it came from, what it brought, or why it could not be used."""

    name: str
    module: str
    distribution: str
    version: str
    methods: tuple[str, ...]
    error: str | None
    modifiers: tuple[str, ...] = ()


class Registry:
    """The merge methods and modifiers at hand. Build it once with `Registry.discover()`."""

    def __init__(self) -> None:
        self._methods: dict[str, tuple[MergeMethod, Plugin]] = {}
        self._modifiers: dict[str, tuple[Modifier, Plugin]] = {}
        self.plugins: list[Plugin] = []

    @classmethod
    def discover(cls, entries: Iterable[EntryPoint] | None = None) -> "Registry":
        """Load every plugin. With SAFEGRAFT_STRICT_PLUGINS=1 a broken one raises PluginError."""
        registry = cls()
        found = entry_points(group=GROUP) if entries is None else entries
        for entry in sorted(found, key=_order):
            registry._load(entry)
        broken = [plugin for plugin in registry.plugins if plugin.error]
        if broken and os.environ.get(STRICT, "") not in ("", "0"):
            raise PluginError("; ".join(f"plugin {plugin.name}: {plugin.error}" for plugin in broken))
        return registry

    def names(self) -> list[str]:
        return sorted(self._methods)

    def get(self, name: str) -> MergeMethod | None:
        found = self._methods.get(name)
        return found[0] if found else None

    def plugin_of(self, name: str) -> Plugin:
        return self._methods[name][1]

    def modifier_names(self) -> list[str]:
        return sorted(self._modifiers)

    def modifier(self, name: str) -> Modifier | None:
        found = self._modifiers.get(name)
        return found[0] if found else None

    def plugin_of_modifier(self, name: str) -> Plugin:
        return self._modifiers[name][1]

    def suggest(self, name: str) -> str:
        """A ready-made end of an error message for an unknown method."""
        return f"{_meant(name, self._methods)}Methods here: {', '.join(self.names())}{self._broken()}"

    def suggest_modifier(self, name: str) -> str:
        """Likewise for an unknown modifier."""
        here = ", ".join(self.modifier_names()) or "none"
        return f"{_meant(name, self._modifiers)}Modifiers here: {here}{self._broken()}"

    def add(self, method: type[MergeMethod], plugin: Plugin) -> None:
        """Register one method; raises PluginError when the class is incomplete or the name is taken."""
        check_class(method)
        if method.name in self._methods:
            other = self._methods[method.name][1]
            raise PluginError(f"method {method.name!r} is already registered by {other.module} ({other.distribution})")
        self._methods[method.name] = (method(), plugin)

    def add_modifier(self, modifier: type[Modifier], plugin: Plugin) -> None:
        """Register one modifier; raises PluginError when the class is incomplete or the name is taken."""
        check_modifier(modifier)
        if modifier.name in self._modifiers:
            other = self._modifiers[modifier.name][1]
            raise PluginError(
                f"modifier {modifier.name!r} is already registered by {other.module} ({other.distribution})"
            )
        self._modifiers[modifier.name] = (modifier(), plugin)

    def _broken(self) -> str:
        broken = [plugin.name for plugin in self.plugins if plugin.error]
        return f". Plugins that could not be used ({', '.join(broken)}): see `safegraft plugins`" if broken else ""

    def _load(self, entry: EntryPoint) -> None:
        distribution = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else "unknown"

        def plugin(brought: _Brought, error: str | None = None) -> Plugin:
            methods = tuple(one.name for one in brought.methods)
            modifiers = tuple(one.name for one in brought.modifiers)
            return Plugin(entry.name, entry.value, distribution, version, methods, error, modifiers)

        try:
            brought = _ask(entry)
            record = plugin(brought)
            # All or nothing: half a plugin would be harder to understand than none.
            trial = Registry()
            trial._methods, trial._modifiers = dict(self._methods), dict(self._modifiers)
            for method in brought.methods:
                trial.add(method, record)
            for modifier in brought.modifiers:
                trial.add_modifier(modifier, record)
            self._methods, self._modifiers = trial._methods, trial._modifiers
        except (Exception, SystemExit) as error:  # a stranger's module may raise anything; it is shown, not hidden
            message = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            record = plugin(_Brought((), ()), error=message)
        self.plugins.append(record)


@dataclass(frozen=True, slots=True)
class _Brought:
    """The classes that one plugin hands over."""

    methods: tuple[type[MergeMethod], ...]
    modifiers: tuple[type[Modifier], ...]


def _order(entry: EntryPoint) -> tuple[bool, str, str]:
    """safegraft's own first: a stranger cannot take the name of a built-in method."""
    return entry.dist is None or entry.dist.name != "safegraft", entry.name, entry.value


def _ask(entry: EntryPoint) -> _Brought:
    """Import one plugin and ask its hooks; a pluggy manager of its own validates their names."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(entry.load(), name=entry.name)
    manager.check_pending()
    methods = [one for answer in manager.hook.merge_methods() for one in answer]
    modifiers = [one for answer in manager.hook.modifiers() for one in answer]
    if not methods and not modifiers:
        raise PluginError("brings nothing: it needs a function merge_methods(), marked @safegraft.hookimpl")
    for method in methods:
        check_class(method)
    for modifier in modifiers:
        check_modifier(modifier)
    return _Brought(tuple(methods), tuple(modifiers))


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def check_class(method: Any) -> None:
    """Raise PluginError unless `method` is a complete MergeMethod class."""
    needs = {"requires": Requirements, "granularity": Granularity}
    _check(method, MergeMethod, "merge", needs, ("Parameters", "InputParameters"))


def check_modifier(modifier: Any) -> None:
    """Raise PluginError unless `modifier` is a complete Modifier class."""
    _check(modifier, Modifier, "modify", {}, ("Parameters",))


def _check(brought: Any, parent: type, verb: str, more: Mapping[str, type], parameters: Iterable[str]) -> None:
    if not (isinstance(brought, type) and issubclass(brought, parent)):
        raise PluginError(f"{brought!r} is not a subclass of safegraft.methods.{parent.__name__}")
    kinds = {"name": str, "summary": str, "reference": str, **more}
    found: dict[str, Any] = {}
    for ancestor in reversed(brought.__mro__):
        found.update(vars(ancestor))
    missing = [attribute for attribute in kinds if attribute not in found]
    if missing:
        raise PluginError(f"{brought.__name__} lacks {', '.join(missing)}")
    for attribute, kind in kinds.items():
        if not isinstance(found[attribute], kind) or not found[attribute]:
            raise PluginError(f"{brought.__name__}.{attribute} must be a {kind.__name__}, not {found[attribute]!r}")
    if inspect.isabstract(brought):
        raise PluginError(f"{brought.__name__} does not implement {verb}()")
    for attribute in parameters:
        if not _is_strict_model(found[attribute]):
            raise PluginError(f"{brought.__name__}.{attribute} must be a pydantic model with extra='forbid'")


def _is_strict_model(parameters: object) -> bool:
    return (
        inspect.isclass(parameters)
        and issubclass(parameters, BaseModel)
        and parameters.model_config.get("extra") == "forbid"
    )
