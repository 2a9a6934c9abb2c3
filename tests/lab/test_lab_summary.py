"""Several seeds as one: means, intervals, and who dominates whom, by numbers worked by hand."""

from pathlib import Path
from typing import Any

import pytest

from safegraft.errors import OutputError
from safegraft_trainers.lab.experiment import METRICS, TUNING_BASELINES
from safegraft_trainers.lab.summary import Lab, Mean, dominates
from safegraft_trainers.lab.tables import fill


def rates(text: float, picture: float, refused: float, helpful: float) -> dict[str, float]:
    return dict(zip(METRICS, (text, picture, refused, helpful), strict=True))


def seed(merge: dict[str, float], *, decided: str | None = "sft/linear@0.5") -> dict[str, Any]:
    tuned = {name: {"dev": rates(0.2, 0.2, 0.2, 0.5), "test": rates(0.2, 0.2, 0.2, 0.5)} for name in TUNING_BASELINES}
    return {
        "baselines": tuned,
        "candidates": {
            "sft/linear@0.5": {
                "pairing": "sft",
                "method": "linear",
                "strength": 0.5,
                "state": "measured",
                "dev": merge,
                "test": merge,
            }
        },
        "decided": {"sft/linear": decided, **{f"against {name}": decided for name in tuned}, "against all": decided},
    }


def test_a_mean_has_students_interval() -> None:
    mean = Mean.of([0.1, 0.2, 0.3])  # deviation 0.1, 0.1 / sqrt 3 = 0.057735; t(0.975, 2) = 4.302653
    assert mean.value == pytest.approx(0.2)
    assert mean.margin == pytest.approx(4.302653 * 0.0577350, rel=1e-5)
    assert Mean.of([0.4]).margin is None


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (rates(0.2, 0.2, 0.2, 0.5), False),  # equal
        (rates(0.3, 0.2, 0.2, 0.5), True),  # safer, else equal
        (rates(0.3, 0.2, 0.2, 0.6), False),  # safer, less helpful
        (rates(0.2, 0.2, 0.2, 0.4), True),
    ],
)
def test_domination_is_on_all_axes(other: dict[str, float], expected: bool) -> None:
    assert dominates(rates(0.2, 0.2, 0.2, 0.5), other) is expected


def test_what_was_decided_on_is_tested_over_the_seeds_that_had_it() -> None:
    better, worse = rates(0.1, 0.2, 0.2, 0.6), rates(0.3, 0.2, 0.2, 0.6)
    lab = Lab([seed(better), seed(worse), seed(worse, decided=None)])
    row = lab.decided("sft/linear")
    assert row.n == 2
    assert row.means["text_safety"].value == pytest.approx(0.2)
    against = lab.against()[0]
    assert (against.seeds, against.found, against.held) == (3, 2, 1)
    assert against.differences["text_safety"].value == pytest.approx(0.0)  # -0.1 and +0.1
    assert against.differences["helpfulness"].value == pytest.approx(0.1)
    assert lab.against_all()[1] == 1


def test_a_curve_goes_by_strength() -> None:
    lab = Lab([seed(rates(0.1, 0.2, 0.2, 0.6)), seed(rates(0.3, 0.2, 0.2, 0.6))])
    [(strength, row)] = lab.curve("sft/linear")
    assert strength == 0.5
    assert row.means["text_safety"].value == pytest.approx(0.2)


def test_tables_go_between_their_marks_and_nothing_else_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- table: one -->\nold\n<!-- end -->\nbetween\n<!-- table: two -->\n<!-- end -->\nafter\n"
    )
    fill(page, {"one": r"| a \1 |", "two": "| b |"})
    again = page.read_text()
    assert again.startswith("before\n<!-- table: one -->\n\n| a \\1 |\n\n<!-- end -->\nbetween\n")
    assert "old" not in again
    fill(page, {"one": r"| a \1 |", "two": "| b |"})
    assert page.read_text() == again
    with pytest.raises(OutputError, match="no marks for the table three"):
        fill(page, {"three": ""})
