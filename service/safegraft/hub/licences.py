"""How the licences of a merge's inputs go together: what may be declared, and what a publisher has to know first.

A table of the Hub's licence ids, and rules that err on the side of a warning. No legal advice: it reads ids, no terms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from safegraft.checkpoint.licence import Licence
from safegraft.hub.markdown import code, linked, listed


class Trait(StrEnum):
    """What a licence says of works that are made from others, as far as the table knows."""

    PERMISSIVE = "permissive"  # asks for notices to be kept
    COPYLEFT = "copyleft"  # asks that what is made from it is under the same licence
    SHARE_ALIKE = "share-alike"  # the same, in the words of Creative Commons and data licences
    NON_COMMERCIAL = "non-commercial"
    NO_DERIVATIVES = "no-derivatives"
    OWN_TERMS = "own terms"  # a maker's own agreement, with rules of use that travel along
    NAMING = "naming"  # asks what the result is called, or for a notice with the maker's name


_P, _C, _S, _N, _D, _O, _A = Trait
_ID = (
    # permissive
    ("apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear isc zlib ncsa postgresql artistic-2.0", {_P}),
    ("bsl-1.0 unlicense wtfpl cc0-1.0 pddl afl-3.0 ecl-2.0 ms-pl cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0", {_P}),
    ("odc-by cdla-permissive-1.0 cdla-permissive-2.0 ofl-1.1 lppl-1.3c openmdw-1.0 openmdw-1.1", {_P}),
    # copyleft and share-alike
    ("gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2", {_C}),
    ("osl-3.0 cdla-sharing-1.0 gfdl cecill-2.1", {_C}),
    ("cc-by-sa-3.0 cc-by-sa-4.0 odbl", {_S}),
    # Creative Commons with conditions
    ("cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0", {_N}),
    ("cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0", {_N, _S}),
    ("cc-by-nd-4.0", {_D}),
    ("cc-by-nc-nd-3.0 cc-by-nc-nd-4.0", {_N, _D}),
    # agreements of a maker's own
    ("openrail openrail++ creativeml-openrail-m bigscience-openrail-m bigscience-bloom-rail-1.0", {_O}),
    ("bigcode-openrail-m deepfloyd-if-license intel-research apple-ascl grok2-community c-uda h-research", {_O}),
    ("llama2", {_O}),
    ("llama3 llama3.1 llama3.2 llama3.3 llama4", {_O, _A}),
    ("gemma", {_O, _A}),
    ("apple-amlr fair-noncommercial-research-license", {_O, _N}),
)
TRAITS: Mapping[str, frozenset[Trait]] = {one: frozenset(traits) for ids, traits in _ID for one in ids.split()}

_NAMING = {
    "llama": 'ask that names of models made from it begin with "Llama" and that a notice says what they are built with',
    "gemma": "ask that its notice and its rules of use go along with every model made from it",
}
SEVERAL = "-and-"  # between the ids of permissive licences that hold together
_PERMISSIVE = frozenset({Trait.PERMISSIVE})
_OF_THEIR_OWN = {Trait.COPYLEFT, Trait.SHARE_ALIKE, Trait.OWN_TERMS}


@dataclass(frozen=True, slots=True)
class Together:
    """declared: what the result's metadata may say; None: it must say nothing. warnings: Markdown, one a paragraph."""

    declared: Licence | None
    warnings: Sequence[str]


def go_together(licences: Mapping[str, Licence | None]) -> Together:
    """How the licences of models (public name -> licence, None where none is declared) go together."""
    warnings = [*_unknown(licences), *_conflicts(licences), *_naming(licences)]
    return Together(_declared([*licences.values()]), warnings)


def shown(licence: Licence | None) -> str:
    """A licence as Markdown, with a link to its text where its model's card has one."""
    if licence is None:
        return "not declared"
    return linked(code(licence.shown), licence.link) if licence.link else code(licence.shown)


def traits_of(licence: Licence | None) -> frozenset[Trait]:
    """What the table knows of a licence; nothing of one that it lacks."""
    return frozenset[Trait]() if licence is None else TRAITS.get(licence.id, frozenset[Trait]())


def _declared(licences: Sequence[Licence | None]) -> Licence | None:
    known = [one for one in licences if one is not None]
    if not known or len(known) < len(licences):
        return None
    if len(set(known)) == 1 and (known[0].id != "other" or known[0].name):
        return known[0]
    ids = sorted({one.id for one in known})
    if len(ids) == 1 and ids[0] in TRAITS:  # one licence that the cards describe with different links
        return Licence(ids[0])
    if all(traits_of(one) == _PERMISSIVE for one in known):
        return Licence("other", SEVERAL.join(ids))  # all of their conditions can be met at once
    return None


def _unknown(licences: Mapping[str, Licence | None]) -> list[str]:
    warnings: list[str] = []
    if silent := [code(name) for name, one in licences.items() if one is None]:
        verb, made = ("declares", "it") if len(silent) == 1 else ("declare", "them")
        text = f"{listed(silent)} {verb} no licence: find out whether what is made from {made} may be shared at all."
        warnings.append(text)
    strange = {code(one.shown): None for one in licences.values() if one is not None and one.id not in TRAITS}
    if strange:
        warnings.append(f"What {listed(list(strange))} asks of merges is not known here: read it.")
    return warnings


def _conflicts(licences: Mapping[str, Licence | None]) -> list[str]:
    """From the gravest on."""

    def having(trait: Trait) -> list[str]:
        return [code(name) for name, one in licences.items() if trait in traits_of(one)]

    warnings: list[str] = []
    if kept := having(Trait.NO_DERIVATIVES):
        warnings.append(f"{listed(kept)}: the licence does not allow sharing works made from it, and a merge is one.")
    private = having(Trait.NON_COMMERCIAL)
    if private and len(private) < len(licences):
        warnings.append(
            f"{listed(private)}: for non-commercial use only, and so is the merge, whatever the others allow."
        )
    demanding = {one.shown for one in licences.values() if one is not None and traits_of(one) & _OF_THEIR_OWN}
    if len(demanding) > 1:
        names = listed([code(one) for one in sorted(demanding)])
        warnings.append(
            f"{names} each ask that what is made from them is under their own terms: both may be impossible."
        )
    elif private and (strict := [one for one in licences.values() if one is not None and _is_strict(one)]):
        warnings.append(
            f"{code(strict[0].shown)} asks that what is made from it is under its own terms, to which a non-commercial "
            "input adds another: both may be impossible."
        )
    return warnings


def _is_strict(licence: Licence) -> bool:
    traits = traits_of(licence)
    return bool(traits & _OF_THEIR_OWN) and Trait.NON_COMMERCIAL not in traits


def _naming(licences: Mapping[str, Licence | None]) -> list[str]:
    ids = sorted({one.id for one in licences.values() if Trait.NAMING in traits_of(one) and one is not None})
    return [
        f"The terms of {code(one)} {words}: read them before you choose a name."
        for one in ids
        for start, words in _NAMING.items()
        if one.startswith(start)
    ]
