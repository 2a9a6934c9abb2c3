"""SWEEP.yml: everything that is wrong with it is told at once, each with its line."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from safegraft.errors import RecipeError
from safegraft_trainers.sweep.candidates import arms_of
from safegraft_trainers.sweep.search import search_of
from safegraft_trainers.sweep.spec import SweepSpec

BAD = """\
models: {llm: ./llm, lvlm: ./lvlm}
pairings:
  - name: one
    models: [llm, lvml]
    bose: llm
  - name: one
    models: [llm, llm]
methods:
  - linear
  - linear
  - {method: slerp, strength: t}
  - method: a-stranger
  - {method: ties, roles: {aligned: nobody}, recipe: {models: []}}
strengths: {low: 0.5, high: 0.1}
recipes:
  - name: own
    recipe: {merge_method: linear, models: [{model: "${llm}"}, {model: "${wrong}"}]}
objectives:
  - {metric: helpfulness, direction: up}
  - {direction: lower}
constraints:
  - helpfulness > 0.9
  - helpfulness >= 97% of lvmm
generation: {max_new_tokens: 0, warmth: 1}
search: {random: {trials: 0}}
limt: 3
"""


def problems(text: str, tmp_path: Path) -> list[str]:
    (tmp_path / "sweep.yml").write_text(text)
    with pytest.raises(RecipeError) as raised:
        SweepSpec.load(tmp_path / "sweep.yml")
    return [str(problem) for problem in raised.value.problems]


def test_all_problems_at_once_with_their_lines(tmp_path: Path) -> None:
    found = problems(BAD, tmp_path)
    expected = [
        (1, "`suites` is missing"),
        (5, "unknown key"),
        (11, "no place for a strength"),
        (13, "models is written by the sweep"),
        (14, "has to be less than `high`"),
        (17, "${wrong} is none of"),
        (19, "direction: input should be 'lower' or 'higher'"),
        (20, "`metric` is missing"),
        (22, "compare with >= or <="),
        (24, "max_new_tokens: input should be greater than or equal to 1"),
        (24, "warmth: unknown key"),
        (25, "trials: input should be greater than or equal to 1"),
        (26, "unknown key; did you mean 'limit'?"),
    ]
    for line, message in expected:
        assert any(one.startswith(f"sweep.yml:{line}:") and message in one for one in found), (line, message, found)
    assert len(found) == len(expected)


def test_names_that_name_nothing_are_told_together(tmp_path: Path) -> None:
    text = BAD.replace("    bose: llm\n", "").replace(", recipe: {models: []}", "").replace("strength: t}", "label: s}")
    found = problems(text.replace("  - helpfulness > 0.9\n", ""), tmp_path)
    for message in (
        "pairings[0].models[1]: 'lvml' is not one of `models`; did you mean 'lvlm'?",
        "pairings[1]: the name 'one' is taken",
        "pairings[1].models[1]: 'llm' is in this pairing twice",
        "methods[1]: 'linear' is listed twice",
        "methods[3]: it is not known which parameter of a-stranger the strength is",
        "methods[4].roles.aligned: 'nobody' is not one of `models`",
        "constraints[0]: 'lvmm' is not one of `models` or `baselines`; did you mean 'lvlm'?",
    ):
        assert any(message in one for one in found), (message, found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairings": []}, "without `pairings` nothing is merged"),
        ({"methods": []}, "without `methods` nothing is merged"),
        ({"pairings": [], "methods": []}, "there is nothing to merge"),
        ({"strengths": None}, "linear needs `strengths`"),
        ({"strengths": {"low": 0, "high": 1}}, "a grid needs `steps`"),
        ({"strengths": []}, "at least 1 item"),
        ({"search": {"random": {"trials": 1}, "grid": {}}}, "give one of `grid`, `random` and `optuna`"),
        ({"methods": [{"method": "linear", "pairings": ["none"]}]}, "'none' is not one of `pairings`"),
        ({"models": {}}, "at least 1 item"),
        ({"objectives": []}, "at least 1 item"),
    ],
)
def test_what_does_not_go_together(sweep_document: dict[str, Any], change: dict[str, Any], message: str) -> None:
    document = {key: value for key, value in (sweep_document | change).items() if value is not None}
    with pytest.raises(RecipeError) as raised:
        SweepSpec.load(document)
    assert message in str(raised.value)
    if change not in ({"models": {}},):
        with pytest.raises(ValidationError, match=r".+"):
            SweepSpec.model_validate(document)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    assert "a sweep is a mapping" in problems("- 1\n", tmp_path)[0]
    assert "a sweep is a mapping" in problems("", tmp_path)[0]
    with pytest.raises(RecipeError, match="cannot be read"):
        SweepSpec.load(tmp_path / "none.yml")


def names(spec: SweepSpec) -> list[str]:
    return [candidate.name for candidate in search_of(spec, arms_of(spec))]


def test_all_pairings_and_a_grid(sweep_document: dict[str, Any]) -> None:
    document = sweep_document | {"pairings": "all", "strengths": {"low": 0.1, "high": 0.3, "steps": 3}}
    found = names(SweepSpec.load(document))
    assert len(found) == 9
    assert found[:4] == [
        "aligned-llm-x-adapted-lvlm/linear@0.1",
        "aligned-llm-x-adapted-lvlm/linear@0.2",
        "aligned-llm-x-adapted-lvlm/linear@0.3",
        "aligned-llm-x-safety-sft-lvlm/linear@0.1",
    ]
    assert SweepSpec.model_validate(document).pairings == SweepSpec.load(document).pairings


def test_own_strengths_own_pairings_and_methods_without_a_strength(sweep_document: dict[str, Any]) -> None:
    methods = [
        "karcher",
        {"method": "slerp", "strengths": [0.7], "pairings": ["temper"]},
        {"method": "mergekit:linear", "pairings": ["restore"]},
    ]
    assert names(SweepSpec.load(sweep_document | {"methods": methods})) == [
        "restore/karcher",
        "restore/mergekit-linear@0",
        "restore/mergekit-linear@0.5",
        "temper/karcher",
        "temper/slerp@0.7",
    ]


def test_random_candidates_differ_and_depend_on_the_seed_alone(sweep_document: dict[str, Any]) -> None:
    ranges = {"strengths": {"low": 0, "high": 1}}
    first, again, other = (
        names(SweepSpec.load(sweep_document | ranges | {"search": {"random": {"trials": 12, "seed": seed}}}))
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) == 12
    few = SweepSpec.load(sweep_document | {"search": {"random": {"trials": 50}}})
    assert sorted(names(few)) == sorted(names(SweepSpec.load(sweep_document)))  # there are no more


def test_a_misspelt_method_is_guessed(sweep_document: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"of linar the strength is.*did you mean 'linear'"):
        SweepSpec.load(sweep_document | {"methods": ["linar"]})
