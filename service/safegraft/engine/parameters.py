"""A method's parameter class as a recipe sees it: names, single values, and what is wrong with a value, in words.

Knows pydantic and nothing of recipes: where a value stands, and which of several counts, is settings.py's business.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from safegraft.errors import PluginError

_NOUNS = {"number": "a number", "integer": "a whole number", "boolean": "true or false", "string": "text"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "greater than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "multipleOf": "a multiple of",
}
_OWN_WORDS = ("value_error", "assertion_error")  # raised by the method author's own validators


class ParameterSet:
    """One pydantic class: `Parameters` or `InputParameters` of a method.

    names: as recipes write them (a field's alias, where it has one). required: those without a default.
    without_effect: those whose JSON Schema says `no_effect: true`, which recipes written for other tools may hold.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model
        self._fields = {_recipe_name(name, field): field for name, field in model.model_fields.items()}
        self._adapters: dict[str, TypeAdapter[Any]] = {}
        self.names = tuple(self._fields)
        self.required = frozenset(name for name, field in self._fields.items() if field.is_required())
        self.without_effect = frozenset(
            name for name, field in self._fields.items() if field.json_schema_extra == {"no_effect": True}
        )

    def convert(self, name: str, value: Any) -> Any:
        """One point of a gradient as the parameter's own type; raises ValueError with what is wrong with it."""
        if name not in self._adapters:
            self._adapters[name] = TypeAdapter(_annotation(self._fields[name]))
        try:
            return self._adapters[name].validate_python(value)
        except ValidationError as error:
            raise ValueError(self._words(name, error.errors()[0], value)) from error

    def fault(self, name: str, value: Any) -> str | None:
        """What is wrong with a value whatever the other parameters are; None when nothing is."""
        try:
            self._model.model_validate({name: value})
        except ValidationError as error:
            for details in error.errors():
                if details["loc"][:1] == (name,):
                    return self._words(name, details, value)
        return None

    def build(self, values: Mapping[str, Any]) -> BaseModel | list[tuple[str | None, str]]:
        """The parameters; or what is wrong: (name, words), the name None where it is their combination."""
        try:
            return self._model.model_validate(dict(values))
        except ValidationError as error:
            return list(self._faults(error, values))

    def _faults(self, error: ValidationError, values: Mapping[str, Any]) -> Iterator[tuple[str | None, str]]:
        for details in error.errors():
            name = str(details["loc"][0]) if details["loc"] else None
            if name is None or name not in values:
                yield None, _message(details)
            else:
                yield name, self._words(name, details, values[name])

    def _words(self, name: str, details: ErrorDetails, value: Any) -> str:
        allowed = None if details["type"] in _OWN_WORDS else self._allowed.get(name)
        return f"{shown(value)} is not allowed: {f'{name} must be {allowed}' if allowed else _message(details)}"

    @functools.cached_property
    def _allowed(self) -> dict[str, str | None]:
        schema: dict[str, Any] = self._model.model_json_schema()
        definitions: dict[str, Any] = schema.get("$defs", {})
        return {name: describe(one, definitions) for name, one in schema.get("properties", {}).items()}


@functools.cache
def parameter_set(model: type[BaseModel]) -> ParameterSet:
    """The set of a class, made once: schemas and adapters cost more than a whole tensor's settings."""
    return ParameterSet(model)


def describe(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str | None:
    """What a JSON schema allows, in words; None when it says nothing that helps."""
    if "$ref" in schema:
        return describe(definitions[str(schema["$ref"]).rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        options: list[Mapping[str, Any]] = [one for one in schema["anyOf"] if one.get("type") != "null"]
        described = [describe(one, definitions) for one in options]
        return " or ".join(one for one in described if one) if all(described) else None
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(repr(one) for one in schema["enum"])
    noun = _NOUNS.get(schema.get("type", ""))
    if noun is None:
        return None
    if "minimum" in schema and "maximum" in schema:
        return f"{noun} from {schema['minimum']:g} to {schema['maximum']:g}"
    bounds = " and ".join(f"{words} {schema[key]:g}" for key, words in _BOUNDS.items() if key in schema)
    return f"{noun}, {bounds}" if bounds else noun


def shown(value: Any) -> str:
    """A value as the recipe has it, cut to what a message can hold."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _annotation(field: FieldInfo) -> Any:
    """The field's type with its constraints, as its author wrote them."""
    annotation: Any = field.annotation
    for constraint in field.metadata:
        annotation = Annotated[annotation, constraint]
    return annotation


def _recipe_name(name: str, field: FieldInfo) -> str:
    if field.validation_alias is None:
        return name
    if not isinstance(field.validation_alias, str):
        raise PluginError(f"parameter {name}: an alias must be plain text, not {type(field.validation_alias).__name__}")
    return field.validation_alias


def _message(details: ErrorDetails) -> str:
    """pydantic's own words, without its prefix for a validator's."""
    message = details["msg"]
    for prefix in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    return message
