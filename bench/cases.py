"""What is merged, how often and by whom. A list, and nothing that runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from bench.sets import BASE, LVLM

OURS_1, OURS_2 = "safegraft, 1 thread", "safegraft, 2 threads"
THEIRS, THEIRS_1 = "mergekit", "mergekit -j 1"
FLOOR = "floor"
OURS, RIVALS = (OURS_1, OURS_2), (THEIRS, THEIRS_1)

Rounds = Mapping[str, int]  # side -> in how many rounds it takes part


@dataclass(frozen=True, slots=True)
class Method:
    """How a recipe asks for a merge method.

    bounded: it works element by element or trims as TIES does, so that its memory must not grow with the model.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    of_each: Mapping[str, Any] = field(default_factory=dict[str, Any])
    needs_base: bool = True
    in_mergekit: bool = True
    bounded: bool = True


_SPARSE = {"weight": 0.5, "density": 0.5}
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "linear": Method(of_each={"weight": 0.5}, needs_base=False),
        "slerp": Method({"t": 0.3}),
        "task_arithmetic": Method(of_each={"weight": 0.5}),
        "ties": Method(of_each=_SPARSE),
        "dare_ties": Method(of_each=_SPARSE),
        "della": Method(of_each=_SPARSE),
        "model_stock": Method(),
        "karcher": Method(needs_base=False),
        "sce": Method({"select_topk": 0.5}),
        "tsv_m": Method(of_each={"weight": 1.0}, in_mergekit=False, bounded=False),
    }
)


@dataclass(frozen=True, slots=True)
class Case:
    """One merge. models: names of a set; the base among them comes as `base`."""

    method: str
    size: str
    models: tuple[str, ...]
    rounds: Rounds
    base: str | None = None

    @property
    def name(self) -> str:
        inputs = "x".join("LVLM" if model == LVLM else "LLM" for model in self.models) if LVLM in self.models else ""
        return f"{self.method}/{self.size}/{inputs or len(self.models)}"

    @property
    def folders(self) -> list[str]:
        """Every model that is read, once."""
        return list(dict.fromkeys([*self.models, *([self.base] if self.base else [])]))

    @property
    def host(self) -> str:
        """The model that the result looks like."""
        return LVLM if LVLM in self.models else self.models[0]

    def recipe(self, where: Mapping[str, str]) -> dict[str, Any]:
        """In mergekit's terms. where: what each model is called in it."""
        method = METHODS[self.method]
        parameters = {"parameters": dict(method.of_each)} if method.of_each else {}
        recipe: dict[str, Any] = {
            "merge_method": self.method,
            "models": [{"model": where[name], **parameters} for name in self.models],
            "dtype": "bfloat16",
        }
        if self.base is not None:
            recipe["base_model"] = where[self.base]
        if method.parameters:
            recipe["parameters"] = dict(method.parameters)
        return recipe


@dataclass(frozen=True, slots=True)
class Profile:
    """What one run measures. served_size: of the set that goes through the server; headers: plans alone."""

    merges: Sequence[Case]
    served_size: str
    served_rounds: int
    upload_size: str
    start_rounds: int
    headers: Sequence[str]


def merge(method: str, size: str, inputs: int, rounds: Rounds) -> Case:
    """LLMs of one set, with its base where the method needs one; slerp's second model is its base."""
    models = tuple(f"model-{number}" for number in range(1, inputs + 1))
    if method == "slerp":
        return Case(method, size, models, rounds, base=models[0])
    return Case(method, size, models, rounds, base=BASE if METHODS[method].needs_base else None)


def into_lvlm(size: str, rounds: Rounds) -> Case:
    """LLM x LVLM. mergekit cannot."""
    return Case("linear", size, ("model-1", LVLM), rounds)


def _rounds(
    ours: int, theirs: int = 0, theirs_1: int = 0, floor: int | None = None, ours_1: int | None = None
) -> Rounds:
    counts = {
        OURS_2: ours,
        OURS_1: ours if ours_1 is None else ours_1,
        THEIRS: theirs,
        THEIRS_1: theirs_1,
        FLOOR: ours if floor is None else floor,
    }
    return {side: count for side, count in counts.items() if count}


_SLOW_THERE = ("ties", "della", "sce")  # mergekit takes half a minute for them on 0.3 GB


def _full() -> Iterator[Case]:
    yield merge("linear", "1GB", 2, _rounds(5, 3, 4))
    for name, method in METHODS.items():
        if not method.in_mergekit:
            yield merge(name, "0.3GB", 2, _rounds(1))
        elif name in _SLOW_THERE:
            yield merge(name, "0.3GB", 2, _rounds(3, 1, 2))
        else:
            yield merge(name, "0.3GB", 2, _rounds(3, 1, 3))
    for size, rounds in (("0.3GB", 3), ("1GB", 3), ("4GB", 2)):
        yield into_lvlm(size, _rounds(rounds, ours_1=0))
    yield merge("linear", "4GB", 2, _rounds(2, ours_1=1))
    for name in ("slerp", "task_arithmetic", "ties", "dare_ties"):
        yield merge(name, "4GB", 2, _rounds(1, ours_1=0, floor=0))
    yield merge("ties", "1GB", 2, _rounds(2, ours_1=0))
    for inputs in (3, 5):
        yield merge("linear", "0.3GB", inputs, _rounds(3, 1, 2))
        yield merge("ties", "0.3GB", inputs, _rounds(3, ours_1=0))


def _quick() -> Iterator[Case]:
    yield merge("linear", "1GB", 2, _rounds(2, 1, 2))
    for name, method in METHODS.items():
        if method.in_mergekit:
            yield merge(name, "0.3GB", 2, _rounds(1 if name in _SLOW_THERE else 2, theirs_1=1, floor=1))
        else:
            yield merge(name, "20MB", 2, _rounds(1))
    yield into_lvlm("0.3GB", _rounds(2, ours_1=0))
    yield into_lvlm("1GB", _rounds(1, ours_1=0))
    for inputs in (3, 5):
        yield merge("linear", "0.3GB", inputs, _rounds(1))
        yield merge("ties", "0.3GB", inputs, _rounds(1, ours_1=0))


def _tiny() -> Iterator[Case]:
    """To try the benchmark itself: its figures mean nothing."""
    for name in METHODS:
        yield merge(name, "20MB", 2, _rounds(2, theirs_1=int(METHODS[name].in_mergekit), floor=1))
    yield into_lvlm("20MB", _rounds(1))
    yield merge("linear", "20MB", 3, _rounds(1))


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "full": Profile(tuple(_full()), "1GB", 5, "0.3GB", 7, ("7B", "70B")),
        "quick": Profile(tuple(_quick()), "0.3GB", 3, "0.3GB", 3, ("7B", "70B")),
        "tiny": Profile(tuple(_tiny()), "20MB", 2, "20MB", 1, ("7B", "70B")),
    }
)
