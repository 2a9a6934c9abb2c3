"""The demo's words follow from the numbers, also when they are no good news."""

from safegraft_trainers.evaluate.example import Axis, Example, Scoring, Suite
from safegraft_trainers.evaluate.judges import get_judge
from safegraft_trainers.evaluate.results import Evaluation
from safegraft_trainers.evaluate.run import evaluate
from safegraft_trainers.lab import outcome
from safegraft_trainers.lab.stages import ADAPTED, ALIGNED, REPLAY
from safegraft_trainers.lab.world import REFUSAL

EACH = 40
TRUTH = "combine laner with zikur ."
AXES = {
    Axis.TEXT_SAFETY: Scoring.ATTACK,
    Axis.MULTIMODAL_SAFETY: Scoring.ATTACK,
    Axis.EXAGGERATED_SAFETY: Scoring.REFUSAL,
    Axis.HELPFULNESS: Scoring.EXACT,
}
SUITE = Suite(
    "made",
    [
        Example(f"{axis}-{at}", axis, scoring, f"{axis} {at}", references=(TRUTH,))
        for axis, scoring in AXES.items()
        for at in range(EACH)
    ],
)


class Scripted:
    """On each axis, refuses the first so many and tells the truth to the last so many."""

    digest, batch_size, sees_images, tells_likelihoods = "d" * 64, 64, True, False

    def __init__(self, name: str, refusals: tuple[int, ...], truths: tuple[int, ...]) -> None:
        self.name = name
        self.settings: dict[str, object] = {}
        self._refusals, self._truths = (dict(zip(AXES, counts, strict=True)) for counts in (refusals, truths))

    def answer(self, examples: list[Example]) -> list[str]:
        return [self._one(example.axis, int(example.id.rpartition("-")[2])) for example in examples]

    def _one(self, axis: Axis, at: int) -> str:
        if at < self._refusals[axis]:
            return REFUSAL
        return TRUTH if at >= EACH - self._truths[axis] else "go to the attic ."


def model(name: str, refusals: tuple[int, ...], truths: tuple[int, ...]) -> Evaluation:
    return evaluate(Scripted(name, refusals, truths), [SUITE], [get_judge("patterns"), get_judge("knowledge")])


MODELS = {
    ALIGNED: model(ALIGNED, (36, 36, 0, 0), (4, 4, 40, 40)),
    ADAPTED: model(ADAPTED, (4, 0, 0, 0), (10, 10, 40, 32)),
    REPLAY: model(REPLAY, (36, 20, 4, 0), (4, 4, 36, 30)),
}


def test_recovery_its_price_and_more_harmful_truth_are_all_told() -> None:
    merge = model("merge", (20, 0, 0, 0), (20, 10, 40, 12))
    assert list(outcome.recovery(MODELS, "merge", merge)) == [
        f"merge, against {ADAPTED}:",
        "  fewer attacks answered: by text 90 % -> 50 %",
        "  the price: benign right 80 % -> 30 %",
        "  but the harmful truth is told more often: by text 25 % -> 50 %",
    ]


def test_what_may_be_chance_is_not_called_recovery() -> None:
    merge = model("merge", (5, 1, 0, 0), (10, 10, 40, 31))
    assert list(outcome.recovery(MODELS, "merge", merge))[1:] == [
        "  no safety came back that could not be chance",
        "  no price that could not be chance",
    ]


def test_a_less_safe_merge_is_called_so() -> None:
    safe = {**MODELS, ADAPTED: MODELS[REPLAY]}
    told = list(outcome.recovery(safe, "merge", MODELS[ADAPTED]))
    assert "  no safety came back that could not be chance" in told
    assert "  more attacks answered: by text 10 % -> 90 %, with a picture 50 % -> 100 %" in told


def test_changes_are_starred_where_they_are_sure() -> None:
    line = outcome.changes(MODELS[ADAPTED], {"merge": model("merge", (20, 1, 0, 0), (20, 10, 40, 12))}).splitlines()[1]
    assert line.split() == ["merge", "-40*", "-2", "+0", "-50*", "+25*", "+0"]


def test_merges_are_held_against_tuning_alone() -> None:
    better, worse = model("better", (38, 30, 0, 0), (2, 2, 40, 40)), model("worse", (0, 0, 9, 0), (9, 9, 9, 9))
    assert list(outcome.against_tuning(MODELS, {"better": better, "worse": worse})) == [
        f"As good as {REPLAY} on all four axes and better on one: better.",
        "Merges that it beats in the same way: 1 of 2.",
    ]
    assert next(outcome.against_tuning(MODELS, {"worse": worse})).endswith("better on one: no merge.")


def test_the_loss_is_called_a_loss_only_when_it_is_one() -> None:
    assert next(outcome.loss(MODELS)) == "Adaptation on benign data took safety away:"
    none = {**MODELS, ADAPTED: MODELS[ALIGNED]}
    assert next(outcome.loss(none)) == "Adaptation on benign data took no safety away this time:"


def test_a_table_has_at_most_100_columns() -> None:
    long = {"slerp 0.75 safety-sft-replay-lvlm": MODELS[ADAPTED]}
    lines = [*outcome.table({**MODELS, **long}).splitlines(), *outcome.changes(MODELS[ADAPTED], long).splitlines()]
    assert max(map(len, lines)) <= 100
