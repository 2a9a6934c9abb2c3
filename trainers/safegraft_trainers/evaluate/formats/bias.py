"""Social bias, which the safety-merging paper names as future work: BBQ and CrowS-Pairs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from safegraft_trainers.evaluate.example import Axis, Example, Scoring
from safegraft_trainers.evaluate.formats.format import Format, multiple_choice
from safegraft_trainers.evaluate.formats.rows import Row, gather
from safegraft_trainers.evaluate.grouped import BBQExample
from safegraft_trainers.evaluate.reading import RawRow, read_rows

CONDITIONS = ("ambig", "disambig")
POLARITIES = ("neg", "nonneg")
ANSWERS = ("ans0", "ans1", "ans2")
METADATA = "additional_metadata.csv"

# How `answer_info` writes a group that `stereotyped_groups` writes otherwise.
_SYNONYMS = {"woman": "f", "girl": "f", "female": "f", "man": "m", "boy": "m", "male": "m"}


def load_bbq(source: str) -> Sequence[Example]:
    """The categories' JSONL files. Subsets: CATEGORY-ambig, CATEGORY-disambig.

    The stereotyped option of a row is `target_loc` of the benchmark's additional_metadata.csv where that lies beside
    the file (or in ../analysis_scripts); else it follows from the groups that the row names. A row that says too
    little is an error that asks for that file. Accuracies and the paper's bias scores: grouped.py.
    """
    raw = read_rows(source)
    return gather(raw, partial(_bbq, _targets({row.folder for row in raw})))


def _targets(folders: Iterable[Path]) -> Mapping[tuple[str, str, str], str]:
    """`target_loc` by category, question index and example id."""
    found: dict[tuple[str, str, str], str] = {}
    for folder in sorted(folders):
        files = [folder / METADATA, folder.parent / "analysis_scripts" / METADATA]
        for file in filter(Path.is_file, files):
            for row in read_rows(str(file)):
                key = (row.values.get("category"), row.values.get("question_index"), row.values.get("example_id"))
                found[cast("tuple[str, str, str]", key)] = str(row.values.get("target_loc", "")).removesuffix(".0")
    return found


def _bbq(targets: Mapping[tuple[str, str, str], str], row: Row) -> Iterable[Example]:
    category, number = row.text("category"), row.text("example_id")
    condition = row.one_of("context_condition", CONDITIONS)
    polarity = row.one_of("question_polarity", POLARITIES)
    choices = tuple(row.text(name) for name in ANSWERS)
    right = row.index("label", len(choices))
    question = f"{row.text('context')}\n{row.text('question')}"
    groups = _groups(row)
    if row.faults or right is None:
        return
    unknown = _unknown(row, groups)
    known = targets.get((category, row.text("question_index"), number), "")
    biased = int(known) if known in ("0", "1", "2") else _stereotyped(row, groups, unknown, polarity)
    if unknown is None or biased is None:
        return
    yield BBQExample(
        f"{category}/{number}",
        Axis.BIAS,
        Scoring.STEREOTYPE,
        multiple_choice(question, choices),
        subset=f"{category}-{condition}",
        choices=choices,
        answer=biased,
        right=right,
        unknown=unknown,
        condition=condition,
    )


def _groups(row: Row) -> list[list[str]]:
    """Of each answer what `answer_info` says of it: [its words, its group]."""
    info = row.record("answer_info")
    found: list[list[str]] = []
    for name in ANSWERS:
        said: Any = info.get(name)
        if isinstance(said, list) and all(isinstance(one, str) for one in cast("list[Any]", said)):
            found.append(cast("list[str]", said))
        elif info:
            row.fault("answer_info", f"must have a list of texts under {name!r}")
    return found


def _unknown(row: Row, groups: list[list[str]]) -> int | None:
    found = [index for index, said in enumerate(groups) if "unknown" in map(str.casefold, said)]
    if len(found) == 1:
        return found[0]
    row.fault("answer_info", f"must mark one answer as 'unknown', not {len(found)}")
    return None


def _stereotyped(row: Row, groups: list[list[str]], unknown: int | None, polarity: str) -> int | None:
    """The option a biased reader picks: the stereotyped group where the question is negative, else the other one."""
    named: Any = row.record("additional_metadata").get("stereotyped_groups")
    targets = {_plain(str(one)) for one in cast("list[Any]", named)} if isinstance(named, list) else set[str]()
    people = [index for index in range(len(groups)) if index != unknown]
    # The closest way of comparing that tells the two apart decides: "22-year-old" has a part "old", and is not.
    for names in (_group, _words, _parts):
        hits = [index for index in people if targets & {_plain(name) for name in names(groups[index])}]
        if len(hits) == 1 and len(people) == 2:
            return hits[0] if polarity == "neg" else next(index for index in people if index != hits[0])
    message = f"does not tell which answer is the stereotyped one; put the benchmark's {METADATA} beside the file"
    row.fault("additional_metadata", message)
    return None


def _group(said: list[str]) -> list[str]:
    """["grandfather", "old"]: old."""
    return said[-1:]


def _words(said: list[str]) -> list[str]:
    """["Ethiopian", "Africa"]: where nationalities are named, not their continents."""
    return said[:-1]


def _parts(said: list[str]) -> list[str]:
    """["DeShawn", "M-Black"], ["the poor one", "lowSES"]: M, Black; low SES."""
    return [re.sub(r"(?<=low|igh)SES", " SES", part) for group in said[-1:] for part in re.split(r"[-_]", group)]


def _plain(text: str) -> str:
    words = text.strip().casefold().removeprefix("the ")
    return _SYNONYMS.get(words, words)


def load_crows_pairs(source: str) -> Sequence[Example]:
    """Pairs of sentences; a model without bias finds the more stereotypical one likelier in half of them.

    Subsets: the bias types. The paper masks words in turn; a causal model's likelihood of the whole sentence is used
    here, as is usual for such models.
    """
    return gather([_numbered(row) for row in read_rows(source)], _crows_pairs)


def _numbered(row: RawRow) -> RawRow:
    """The file's first column, which is its row number, has no name."""
    return RawRow(row.where, {"id": row.values.get(""), **row.values}, row.folder)


def _crows_pairs(row: Row) -> Iterable[Example]:
    row.one_of("stereo_antistereo", ("stereo", "antistereo"))
    yield Example(
        row.text("id"),
        Axis.BIAS,
        Scoring.LIKELIHOOD,
        "",
        subset=row.text("bias_type"),
        choices=(row.text("sent_more"), row.text("sent_less")),
    )


FORMATS = (
    Format("bbq", Axis.BIAS, load_bbq, "heegyu/bbq:data/*.jsonl", "https://arxiv.org/abs/2110.08193"),
    Format("crows-pairs", Axis.BIAS, load_crows_pairs, None, "https://arxiv.org/abs/2010.00133"),
)
