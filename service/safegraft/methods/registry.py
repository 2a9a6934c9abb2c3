"""Finds plugins by the entry-point group `safegraft`; a broken one is recorded, never fatal."""

import difflib
import inspect
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy
from pydantic import BaseModel

from safegraft.errors import PluginError
from safegraft.methods import hookspecs
from safegraft.methods.contract import Granularity, MergeMethod, Requirements

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


class Registry:
    """The merge methods at hand. Build it once with `Registry.discover()`."""

    def __init__(self) -> None:
        self._methods: dict[str, tuple[MergeMethod, Plugin]] = {}
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

    def suggest(self, name: str) -> str:
        """A ready-made end of an error message for an unknown method."""
        close = difflib.get_close_matches(name, self._methods, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        broken = [plugin.name for plugin in self.plugins if plugin.error]
        more = f". Plugins that could not be used ({', '.join(broken)}): see `safegraft plugins`" if broken else ""
        return f"{hint}Methods here: {', '.join(self.names())}{more}"

    def add(self, method: type[MergeMethod], plugin: Plugin) -> None:
        """Register one method; raises PluginError when the class is incomplete or the name is taken."""
        check_class(method)
        if method.name in self._methods:
            other = self._methods[method.name][1]
            raise PluginError(f"method {method.name!r} is already registered by {other.module} ({other.distribution})")
        self._methods[method.name] = (method(), plugin)

    def _load(self, entry: EntryPoint) -> None:
        distribution = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else "unknown"

        def plugin(methods: Iterable[str] = (), error: str | None = None) -> Plugin:
            return Plugin(entry.name, entry.value, distribution, version, tuple(methods), error)

        try:
            classes = _classes(entry)
            record = plugin(method.name for method in classes)
            # All or nothing: half a plugin would be harder to understand than none.
            trial = Registry()
            trial._methods = dict(self._methods)
            for method in classes:
                trial.add(method, record)
            self._methods = trial._methods
        except (Exception, SystemExit) as error:  # a stranger's module may raise anything; it is shown, not hidden
            message = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            record = plugin(error=message)
        self.plugins.append(record)


def _order(entry: EntryPoint) -> tuple[bool, str, str]:
    """safegraft's own first: a stranger cannot take the name of a built-in method."""
    return entry.dist is None or entry.dist.name != "safegraft", entry.name, entry.value


def _classes(entry: EntryPoint) -> list[type[MergeMethod]]:
    """Import one plugin and ask its hook; a pluggy manager of its own validates the hook's name."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(entry.load(), name=entry.name)
    manager.check_pending()
    answers: list[Any] = manager.hook.merge_methods()
    if not answers:
        raise PluginError("brings no methods: it needs a function merge_methods(), marked @safegraft.hookimpl")
    methods = [method for answer in answers for method in answer]
    for method in methods:
        check_class(method)
    return methods


def check_class(method: Any) -> None:
    """Raise PluginError unless `method` is a complete MergeMethod class."""
    if not (isinstance(method, type) and issubclass(method, MergeMethod)):
        raise PluginError(f"{method!r} is not a subclass of safegraft.methods.MergeMethod")
    kinds = {"name": str, "summary": str, "reference": str, "requires": Requirements, "granularity": Granularity}
    found: dict[str, Any] = {}
    for parent in reversed(method.__mro__):
        found.update(vars(parent))
    missing = [attribute for attribute in kinds if attribute not in found]
    if missing:
        raise PluginError(f"{method.__name__} lacks {', '.join(missing)}")
    for attribute, kind in kinds.items():
        if not isinstance(found[attribute], kind) or not found[attribute]:
            raise PluginError(f"{method.__name__}.{attribute} must be a {kind.__name__}, not {found[attribute]!r}")
    if inspect.isabstract(method):
        raise PluginError(f"{method.__name__} does not implement merge()")
    for attribute, parameters in (("Parameters", method.Parameters), ("InputParameters", method.InputParameters)):
        if not _is_strict_model(parameters):
            raise PluginError(f"{method.__name__}.{attribute} must be a pydantic model with extra='forbid'")


def _is_strict_model(parameters: object) -> bool:
    return (
        inspect.isclass(parameters)
        and issubclass(parameters, BaseModel)
        and parameters.model_config.get("extra") == "forbid"
    )
