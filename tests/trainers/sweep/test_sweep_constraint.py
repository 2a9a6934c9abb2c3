"""Constraints: what the grammar takes, what it refuses and how it helps, and what a limit means."""

import pytest

from safegraft_trainers.sweep.constraint import Constraint, parse_constraint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("helpfulness >= 0.9", (">=", 0.9, None, 0.0)),
        ("helpfulness>=90%", (">=", 0.9, None, 0.0)),
        ("text_safety <= 5 %", ("<=", 0.05, None, 0.0)),
        ("text_safety <= 1e-2", ("<=", 0.01, None, 0.0)),
        ("helpfulness >= 97% of lvlm", (">=", 0.0, "lvlm", 0.97)),
        ("helpfulness >= .97 of org/lvlm@main", (">=", 0.0, "org/lvlm@main", 0.97)),
        ("exaggerated_safety <= lvlm", ("<=", 0.0, "lvlm", 1.0)),
        ("exaggerated_safety <= lvlm + 0.02", ("<=", 0.02, "lvlm", 1.0)),
        ("xstest/safe@knowledge <= safety-sft - 0.02", ("<=", -0.02, "safety-sft", 1.0)),
        ("helpfulness >= 7b-chat", (">=", 0.0, "7b-chat", 1.0)),
    ],
)
def test_what_the_grammar_takes(text: str, expected: tuple[str, float, str | None, float]) -> None:
    parsed = parse_constraint(text)
    relation, shift, model, factor = expected
    assert (parsed.relation, parsed.model, parsed.text) == (relation, model, text)
    assert (parsed.shift, parsed.factor) == pytest.approx((shift, factor))
    assert parsed.metric == text.replace(">", "<").partition("<")[0].strip()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "no comparison"),
        ("helpfulness", "no comparison"),
        ("helpfulness at least 0.9", "no comparison"),
        ("helpfulness > 0.9", "compare with >= or <="),
        ("helpfulness == 0.9", "compare with >= or <="),
        ("helpfulness =< 0.9", "compare with >= or <="),
        (">= 0.9", "left side has to be a metric"),
        ("help fulness >= 0.9", "no comparison"),
        ("helpfulness >=", "right side is missing"),
        ("helpfulness >= 97% lvlm", "is no bound"),
        ("helpfulness >= lvlm+0.02", None),  # a model's name may have such signs
        ("helpfulness >= lvlm + 2%", "write `lvlm + 0.02`"),
        ("helpfulness >= lvlm + 2 points", "write `lvlm + 0.02`"),
        ("helpfulness >= lvlm * 0.97", "is no bound"),
        ("helpfulness >= lvlm + other", "is no bound"),
        ("helpfulness >= lvlm + 0.1 + 0.1", "is no bound"),
        ("0.1 <= helpfulness <= 0.9", "is no bound"),
        ("helpfulness >= -0.1", "is no bound"),
        ("helpfulness >= nan", "is no bound"),
        ("helpfulness >= 1e999", "too large"),
        ("helpfulness >= 0,9", "is no bound"),
    ],
)
def test_what_it_refuses_says_how_to_write_it(text: str, hint: str | None) -> None:
    if hint is None:
        assert parse_constraint(text).model == "lvlm+0.02"
        return
    with pytest.raises(ValueError, match=r".+") as raised:
        parse_constraint(text)
    assert hint in str(raised.value)


def test_a_limit_is_met_exactly_at_it_in_spite_of_binary_fractions() -> None:
    relative = parse_constraint("helpfulness >= lvlm + 0.2")
    assert relative.bound(0.1) > 0.3  # in binary, by 5e-17
    assert relative.is_met(0.3, relative.bound(0.1))
    assert not relative.is_met(0.2999, relative.bound(0.1))
    shifted = parse_constraint("exaggerated_safety <= lvlm + 0.2")
    assert shifted.is_met(0.3, shifted.bound(0.1))
    assert shifted.excess(0.35, shifted.bound(0.1)) == pytest.approx(0.05)


def test_hopeless_is_an_interval_that_lies_beyond_the_limit_as_a_whole() -> None:
    at_most, at_least = parse_constraint("a <= 0.2"), parse_constraint("a >= 0.2")
    assert at_most.is_hopeless(0.21, 0.4, 0.2)
    assert not at_most.is_hopeless(0.19, 0.4, 0.2)
    assert at_least.is_hopeless(0.1, 0.19, 0.2)
    assert not at_least.is_hopeless(0.1, 0.21, 0.2)


def test_a_relative_limit_needs_its_models_value() -> None:
    with pytest.raises(ValueError, match="needs the value of lvlm"):
        Constraint("a", ">=", 0.0, "lvlm", 1.0, "a >= lvlm").bound(None)
