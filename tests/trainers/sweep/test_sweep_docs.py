"""docs/sweep.md: its example is a sweep, its template is a recipe, and every key and method is there."""

import re
from pathlib import Path

import yaml

from safegraft.recipe import read_recipe
from safegraft_trainers.sweep.candidates import arms_of
from safegraft_trainers.sweep.parts import Method
from safegraft_trainers.sweep.rules import RULES
from safegraft_trainers.sweep.spec import SweepSpec

TEXT = (Path(__file__).parents[3] / "docs" / "sweep.md").read_text()
WHOLE, TEMPLATE = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_the_example_is_a_sweep_and_the_template_fits_it(tmp_path: Path) -> None:
    (tmp_path / "sweep.yml").write_text(WHOLE + TEMPLATE)
    arms = arms_of(SweepSpec.load(tmp_path / "sweep.yml"))
    assert len(arms) == 7
    for arm in arms:
        for candidate in arm.grid():
            assert read_recipe(candidate.recipe, folder_exists=lambda _: True).inputs()
    late = arms[-1].grid()[0].recipe
    assert [one["parameters"]["weight"] for one in late["models"]] == [[0, 0.1], [1, 0.9]]


def test_every_key_is_there() -> None:
    rows = re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE)
    told = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert set(SweepSpec.model_fields) | set(Method.model_fields) - {"method"} <= told


def test_every_method_is_there() -> None:
    patterns = [one.replace("*", r"\w*") for one in re.findall(r"`([\w*]+)`", TEXT)]
    assert [name for name in RULES if not any(re.fullmatch(one, name) for one in patterns)] == []


def test_the_sweep_document_is_yaml_once_more() -> None:
    """What is printed of a spec reads as the same spec."""
    spec = SweepSpec.load(yaml.safe_load(WHOLE))
    again = yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True)))
    for part in (again["strengths"], *again["search"].values()):
        assert part is not None
    assert SweepSpec.load(again | {"strengths": again["strengths"]["values"]}) == spec
