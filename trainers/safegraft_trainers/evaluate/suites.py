"""Suites as the command line names them: "FORMAT=PATH", or "FORMAT" for a data set in the local Hub cache.

Knows which examples are taken and what a suite is called; how files read is the formats'.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safegraft.errors import InputError, Problem, UsageError
from safegraft_trainers.evaluate.example import Example, Suite
from safegraft_trainers.evaluate.formats import FORMATS

SPLITS = ("dev", "test")


def load_suite(spec: str, *, limit: int | None = None, seed: int = 0, split: str | None = None) -> Suite:
    """Load a suite, or a part of it that is the same on every machine.

    split: "dev" or "test", halves that share no example: an example is in one by the hash of its id, whatever else the
    file holds. limit: at most so many, drawn by `seed`; the order stays.
    Raises UsageError for a spec that names no format, InputError with every problem of the file.
    """
    name, _, path = spec.partition("=")
    if name not in FORMATS:
        raise UsageError(f"{name!r} is no format of prompts; there are {', '.join(FORMATS)}")
    if split is not None and split not in SPLITS:
        raise UsageError(f"{split!r} is no split: give {' or '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} leaves nothing to ask")
    kind = FORMATS[name]
    where = path or kind.hub_name
    if where is None:
        raise UsageError(f"the format {name} has no usual place: give a file, as in {name}=PATH")
    examples = kind.load(where)
    chosen = [one for one in examples if split is None or _half(one.id) == split]
    if not chosen:
        raise InputError(Problem(where, "holds no examples" if not examples else f"no example is in its {split} half"))
    return Suite(_suite_name(name, where), _drawn(chosen, limit, seed), kind.reference)


def load_suites(
    specs: Sequence[str], *, limit: int | None = None, seed: int = 0, split: str | None = None
) -> list[Suite]:
    """Load several. Those of one format get the file's name after the format's, to be told apart."""
    suites = [load_suite(spec, limit=limit, seed=seed, split=split) for spec in specs]
    counts = Counter(suite.name for suite in suites)
    return [
        replace(suite, name=f"{suite.name}-{Path(spec.partition('=')[2]).stem}") if counts[suite.name] > 1 else suite
        for suite, spec in zip(suites, specs, strict=True)
    ]


def _suite_name(name: str, where: str) -> str:
    """Our own format says nothing of what is in it; the file's name may."""
    return Path(where).stem if name == "safegraft" else name


def _half(identity: str) -> str:
    return SPLITS[hashlib.sha256(f"split\n{identity}".encode()).digest()[0] & 1]


def _drawn(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    if limit is None or limit >= len(examples):
        return list(examples)
    ranks = sorted(examples, key=lambda one: hashlib.sha256(f"limit\n{seed}\n{one.id}".encode()).digest())
    chosen = {one.id for one in ranks[:limit]}
    return [one for one in examples if one.id in chosen]
