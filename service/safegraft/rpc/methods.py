"""What there is to merge with, as plain data: how methods and plugins cross from a worker to the server.

Plugins are strangers' code, so they are imported in workers only.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from safegraft.methods.contract import MergeMethod
from safegraft.methods.registry import Plugin, Registry


@dataclass(frozen=True, slots=True)
class CalibrationInfo:
    """What a method must know of a model at work: see safegraft.methods.Calibration."""

    name: str
    statistic: str
    model: str
    data: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """A merge method. The parameters are JSON Schemas; max_inputs None: any number."""

    name: str
    summary: str
    reference: str
    granularity: str
    base: str  # "required", "optional", "ignored" or "forbidden"
    min_inputs: int
    max_inputs: int | None
    parameters: Mapping[str, object]
    input_parameters: Mapping[str, object]
    plugin: str
    roles: tuple[str, ...] = ()
    calibration: tuple[CalibrationInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class ModifierInfo:
    """A modifier. The parameters are a JSON Schema."""

    name: str
    summary: str
    reference: str
    parameters: Mapping[str, object]
    plugin: str


@dataclass(frozen=True, slots=True)
class MethodCatalogue:
    """All methods and modifiers in alphabetical order, and all plugins, broken ones with their `error`."""

    methods: tuple[MethodInfo, ...]
    plugins: tuple[Plugin, ...]
    modifiers: tuple[ModifierInfo, ...] = ()


def catalogue(registry: Registry) -> MethodCatalogue:
    """Describe everything in a registry."""
    infos = tuple(
        _describe(method, registry.plugin_of(name).name)
        for name in registry.names()
        if (method := registry.get(name)) is not None
    )
    modifiers = tuple(
        ModifierInfo(
            name=name,
            summary=modifier.summary,
            reference=modifier.reference,
            parameters=modifier.Parameters.model_json_schema(),
            plugin=registry.modifiers.plugin_of(name).name,
        )
        for name in registry.modifiers.names()
        if (modifier := registry.modifiers.get(name)) is not None
    )
    return MethodCatalogue(infos, tuple(registry.plugins), modifiers)


def _describe(method: MergeMethod, plugin: str) -> MethodInfo:
    return MethodInfo(
        name=method.name,
        summary=method.summary,
        reference=method.reference,
        granularity=str(method.granularity),
        base=method.requires.base,
        min_inputs=method.requires.min_inputs,
        max_inputs=method.requires.max_inputs,
        parameters=method.Parameters.model_json_schema(),
        input_parameters=method.InputParameters.model_json_schema(),
        plugin=plugin,
        roles=method.requires.roles,
        calibration=tuple(
            CalibrationInfo(one.name, str(one.statistic), one.model, one.data) for one in method.requires.calibration
        ),
    )
