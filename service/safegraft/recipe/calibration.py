"""Reads `calibration:`: data on which models are shown at work. Whether the file is there is the planner's business."""

from collections.abc import Mapping
from typing import Any

from safegraft.recipe.model import At, CalibrationSet
from safegraft.recipe.values import Values

FIELDS = ("text", "prompt", "response", "chosen", "rejected", "image")
# What a row must hold, one of these; an image may come with any.
KINDS = ({"text"}, {"prompt"}, {"prompt", "response"}, {"prompt", "chosen", "rejected"})
SAMPLES, MAX_SAMPLES = 128, 100_000
MAX_LENGTH, LONGEST = 512, 1_000_000  # tokens
MAX_SEED = 2**63 - 1


def read_calibration(values: Values, at: At, value: Any) -> tuple[CalibrationSet, ...]:
    """The sets in a `calibration:` mapping, in the order of their names."""
    sets = values.mapping(at, value, known=None)
    return tuple(_read_set(values, (*at, name), name, sets[name]) for name in sorted(sets))


def _read_set(values: Values, at: At, name: str, value: Any) -> CalibrationSet:
    item = values.mapping(at, value, ("data", *FIELDS, "samples", "seed", "max_length"))
    data = values.text((*at, "data"), item.get("data"))
    fields = {field: values.text((*at, field), item.get(field)) for field in FIELDS if item.get(field) is not None}
    if isinstance(value, dict):
        if item.get("data") is None:
            values.missing(at, "data", "`data` is missing: give a JSONL or parquet file, or a data set on the Hub")
        _check_kind(values, at, fields)
    return CalibrationSet(
        name=name,
        data=data or "",
        fields={field: column for field, column in fields.items() if column},
        samples=values.whole((*at, "samples"), item.get("samples"), SAMPLES, 1, MAX_SAMPLES),
        seed=values.whole((*at, "seed"), item.get("seed"), 0, 0, MAX_SEED),
        max_length=values.whole((*at, "max_length"), item.get("max_length"), MAX_LENGTH, 8, LONGEST),
        at=at,
    )


def _check_kind(values: Values, at: At, fields: Mapping[str, object]) -> None:
    if fields.keys() - {"image"} not in KINDS:
        ways = " or ".join(", ".join(f"`{field}`" for field in FIELDS if field in kind) for kind in KINDS)
        values.findings.add(at, f"say which columns to read: {ways}; each may have an `image` as well")
