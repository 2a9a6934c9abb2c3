"""Which parameter of a merge method the strength is, as data.

A strength is the share that a pairing's first model gets: 0 is (about) the others, 1 the first. Where a method has no
such share it is what the method has instead, on that parameter's own scale (safe_lora's threshold, safe_delta's s, the
fraction that antidote or sce selects): such methods want strengths of their own. `parameter` says what sets it:

    parameters.t             a shared parameter
    1 - parameters.lambda    ... that counts the other way round
    share.weight             each input's parameter: the first model's is the strength, the others share the rest
    each.density             each input's parameter, the same for all
    first.lambda             the first model's alone

A method with a `mergekit:` name goes by the rule of the plain one. Knows no registry: a rule that does not fit what is
installed shows when a candidate is planned, and a test plans all of them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Place = Literal["parameters", "share", "each", "first"]
Base = Literal["none", "own", "last", "needed"]

_PARAMETER = re.compile(r"(?P<rest>1 - )?(?P<place>parameters|share|each|first)\.(?P<name>[A-Za-z_]\w*)")
FORMS = "parameters.NAME, share.NAME, each.NAME or first.NAME, all but share also as `1 - parameters.NAME`"


@dataclass(frozen=True, slots=True)
class Strength:
    """Where a strength goes. rest: what is written is 1 - strength."""

    place: Place
    name: str
    rest: bool = False

    def value(self, strength: float) -> float:
        return tidy(1 - strength) if self.rest else strength


@dataclass(frozen=True, slots=True)
class Rule:
    """How a method takes a pairing.

    parameter: see above; None: the method has no strength, and a pairing gives one candidate.
    first: "input", or the role that the pairing's first model has; the others are inputs.
    base: "none"; "own": the pairing's, if it has one, else none; "last": the pairing's last model; "needed": the
        pairing's own, or else its last model, which then is no input.
    roles: those that the method asks for beside `first`; of a pairing's roles it gets these.
    parameters: unless the sweep says otherwise. Methods that normalise their weights would undo the strength of a
        single input.
    """

    parameter: str | None
    first: str = "input"
    base: Base = "none"
    roles: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])


def parse_strength(text: str) -> Strength:
    """Raises ValueError."""
    match = _PARAMETER.fullmatch(text.strip())
    if match is None or (match["rest"] and match["place"] == "share"):
        raise ValueError(f"{text!r} is no place for a strength; write {FORMS}")
    place: Any = match["place"]
    return Strength(place, match["name"], match["rest"] is not None)


def tidy(number: float) -> float:
    """Without the noise of binary fractions: 1 - 0.9 is 0.1 in a recipe that people read."""
    return round(number, 12)


def rule_of(method: str) -> Rule | None:
    """None for a method that is not in the table."""
    return RULES.get(method.removeprefix("mergekit:"))


_PLAIN: Mapping[str, Any] = {"normalize": False}
_TASK = Rule("share.weight", base="needed")
_TASK_UNNORMALISED = Rule("share.weight", base="needed", parameters=_PLAIN)
_ALIGNED = "aligned"

RULES: Mapping[str, Rule] = {
    # Means and arcs between models.
    "linear": Rule("share.weight"),
    "slerp": Rule("parameters.t", base="last"),
    "nuslerp": Rule("share.weight", base="own"),
    "multislerp": Rule("share.weight", base="own"),
    "karcher": Rule(None),
    "fisher": Rule("share.weight"),
    "regmean": Rule("share.weight"),
    "model_stock": Rule(None, base="needed"),
    "nearswap": Rule("parameters.t", base="last"),
    "arcee_fusion": Rule(None, base="last"),
    # Task vectors added to a base.
    "task_arithmetic": _TASK,
    "ties": _TASK_UNNORMALISED,
    "dare_linear": _TASK,
    "dare_ties": _TASK,
    "della": _TASK_UNNORMALISED,
    "della_linear": _TASK,
    "breadcrumbs": _TASK,
    "breadcrumbs_ties": _TASK,
    "cabs": _TASK,
    "consensus_ta": _TASK,
    "iso_c": _TASK,
    "iso_cts": _TASK,
    "tsv_m": _TASK,
    "knots": _TASK,
    "star": _TASK,
    "pcb": _TASK,
    "swudi": _TASK,
    "aswudi": _TASK,
    "led": _TASK,
    "magmax": Rule("parameters.lambda", base="needed"),
    "sce": Rule("parameters.select_topk", base="needed"),
    "ram": Rule(None, base="needed"),
    "ramplus_tl": Rule("parameters.alpha", base="needed"),
    # Safety-aware: the first model is the aligned one, the LVLM is what is merged.
    "pre_post": Rule("1 - parameters.lambda", first=_ALIGNED),
    "mergealign": Rule("parameters.t", first=_ALIGNED, base="own"),
    "difference_weighted": Rule("parameters.alpha0", first=_ALIGNED),
    "layer_swap": Rule("parameters.t", first=_ALIGNED),
    "safety_layers": Rule("parameters.t", first=_ALIGNED),
    "neuron_fusion": Rule("1 - parameters.scale", first=_ALIGNED),
    "safe_delta": Rule("parameters.s", first=_ALIGNED),
    "safe_lora": Rule("parameters.threshold", first=_ALIGNED, base="own"),
    "somf": Rule("1 - each.lambda", first=_ALIGNED),
    "resta": Rule("parameters.gamma", first=_ALIGNED, roles=("unaligned",)),
    "safemerge": Rule("parameters.safe_weight", first="safety_tuned", base="own", roles=(_ALIGNED,)),
    # Without a second model to merge: the pairing's only model is the input.
    "safety_arithmetic": Rule("parameters.lambda", base="own", roles=("harmful",)),
    "antidote": Rule("parameters.fraction"),
}
