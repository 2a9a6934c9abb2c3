"""How licences go together: what may be declared, and never silence where somebody has to look."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.checkpoint.licence import Licence
from safegraft.hub.licences import TRAITS, Trait, go_together, shown, traits_of


def together(*ids: str | None, **more: Licence):
    named = {f"m{place}": None if one is None else Licence(one) for place, one in enumerate(ids)}
    return go_together({**named, **more})


@pytest.mark.parametrize("licence", ["apache-2.0", "mit", "gpl-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0"])
def test_one_licence_is_declared_and_nothing_is_said(licence: str) -> None:
    found = together(licence, licence)
    assert found.declared == Licence(licence)
    assert not found.warnings


def test_permissive_ones_hold_together() -> None:
    found = together("mit", "apache-2.0", "mit")
    assert found.declared == Licence("other", "apache-2.0-and-mit")
    assert not found.warnings


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (("mit", None), "`m1` declares no licence: find out whether what is made from it may"),
        ((None, None), "`m0` and `m1` declare no licence: find out whether what is made from them may"),
        (("mit", "my-own"), "What `my-own` asks of merges is not known here"),
        (("mit", "cc-by-nd-4.0"), "`m1`: the licence does not allow sharing works made from it"),
        (("cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0"), "`m0` and `m1`: the licence does not allow sharing"),
        (("apache-2.0", "cc-by-nc-4.0"), "`m1`: for non-commercial use only, and so is the merge"),
        (("gpl-3.0", "cc-by-sa-4.0"), "`cc-by-sa-4.0` and `gpl-3.0` each ask that what is made from them"),
        (("llama2", "gemma"), "`gemma` and `llama2` each ask"),
        (("llama3", "llama3.1"), "`llama3` and `llama3.1` each ask"),
        (("agpl-3.0", "cc-by-nc-4.0"), "`agpl-3.0` asks that what is made from it is under its own terms"),
        (("llama3.1", "mit"), 'The terms of `llama3.1` ask that names of models made from it begin with "Llama"'),
        (("gemma", "gemma"), "The terms of `gemma` ask that its notice and its rules of use go along"),
    ],
)
def test_what_has_to_be_looked_at_is_said(ids: tuple[str | None, ...], words: str) -> None:
    assert any(text.startswith(words) for text in together(*ids).warnings)


@pytest.mark.parametrize(
    "ids", [("mit", None), ("mit", "my-own"), ("gpl-3.0", "mit"), ("apache-2.0", "cc-by-nc-4.0"), ("llama2", "mit")]
)
def test_nothing_is_declared_where_it_is_not_one(ids: tuple[str | None, ...]) -> None:
    assert together(*ids).declared is None


def test_a_licence_of_a_name_of_its_own_is_declared_where_all_have_it() -> None:
    own = Licence("other", "house-rules", "https://example.org/rules")
    found = together(a=own, b=own)
    assert found.declared == own
    assert "What `house-rules` asks" in found.warnings[0]
    assert together(a=own, b=Licence("other", "house-rules", "https://example.org/new")).declared is None
    assert together(a=Licence("other"), b=Licence("other")).declared is None
    linked = Licence("apache-2.0", link="https://example.org/apache")
    assert together("apache-2.0", a=linked).declared == Licence("apache-2.0")


def test_how_a_licence_is_shown() -> None:
    assert shown(None) == "not declared"
    assert shown(Licence("other", "a`b", "https://example.org/a")) == "[``a`b``](https://example.org/a)"
    assert shown(Licence("mit", link="javascript:alert(1)")) == "`mit`: `javascript:alert(1)`"


IDS = st.sampled_from([None, "other", "unheard-of", *TRAITS])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(IDS, min_size=1, max_size=4))
def test_rules_hold_for_every_mix(ids: list[str | None]) -> None:
    found = together(*ids)
    traits = [traits_of(None if one is None else Licence(one)) for one in ids]
    orders = itertools.permutations(ids)
    assert {together(*order).declared for order in orders} == {found.declared}
    if len(set(ids)) > 1 and not all(one == {Trait.PERMISSIVE} for one in traits):
        assert found.declared is None
    if any(Trait.NON_COMMERCIAL in one for one in traits) and not all(Trait.NON_COMMERCIAL in one for one in traits):
        assert any("non-commercial" in text for text in found.warnings)
    if any(one not in TRAITS for one in ids):
        assert found.warnings
    if any(Trait.NO_DERIVATIVES in one for one in traits):
        assert any("does not allow" in text for text in found.warnings)
