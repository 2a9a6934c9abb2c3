"""Harmful requests in text: SORRY-Bench, AdvBench, HarmBench, WildJailbreak, StrongREJECT."""

from collections.abc import Iterable, Sequence

from safegraft_trainers.evaluate.example import Axis, Example
from safegraft_trainers.evaluate.formats.format import Format
from safegraft_trainers.evaluate.formats.rows import Row, attack, content_ids, gather, harmless
from safegraft_trainers.evaluate.reading import read_rows

HARMBENCH_KINDS = ("standard", "contextual", "copyright")
WILDJAILBREAK_KINDS = ("vanilla_harmful", "vanilla_benign", "adversarial_harmful", "adversarial_benign")


def load_sorry_bench(source: str) -> Sequence[Example]:
    """Subsets: the category of an unchanged request, the style of a rewritten one (`slang`, `ascii`, ...)."""
    return gather(read_rows(source), _sorry_bench)


def _sorry_bench(row: Row) -> Iterable[Example]:
    turns = row.strings("turns")
    if len(turns) != 1 and "turns" in row.raw.values:
        row.fault("turns", f"must hold one turn, not {len(turns)}")
    style = row.optional("prompt_style") or "base"
    category = row.text("category")
    # The question's number is the same in every style.
    identity = f"{style}/{row.text('question_id')}"
    yield attack(identity, "".join(turns), subset=category if style == "base" else style)


def load_advbench(source: str) -> Sequence[Example]:
    """`target` is how a compliant answer begins, not what is harmful in it: it is no reference and is not read."""
    return content_ids(gather(read_rows(source), _advbench))


def _advbench(row: Row) -> Iterable[Example]:
    yield attack("", row.text(row.named("goal", "prompt")))


def load_harmbench(source: str) -> Sequence[Example]:
    """A contextual behaviour is asked below its context, as the benchmark's direct request asks it."""
    return gather(read_rows(source), _harmbench)


def _harmbench(row: Row) -> Iterable[Example]:
    behavior = row.text("Behavior")
    kind = row.one_of("FunctionalCategory", HARMBENCH_KINDS)
    context = row.optional("ContextString")
    if kind == "contextual" and not context:
        row.fault("ContextString", "is empty, but the behavior is contextual; take the benchmark's own file")
    prompt = f"{context}\n\n---\n\n{behavior}" if context else behavior
    yield attack(row.text("BehaviorID"), prompt, subset=kind)


def load_wildjailbreak(source: str) -> Sequence[Example]:
    """Benign rows measure exaggerated safety. Subsets: the data types."""
    return content_ids(gather(read_rows(source), _wildjailbreak))


def _wildjailbreak(row: Row) -> Iterable[Example]:
    kind = row.one_of("data_type", WILDJAILBREAK_KINDS)
    form, _, intent = kind.partition("_")
    prompt = row.text(form) if form else ""
    yield (harmless if intent == "benign" else attack)("", prompt, subset=kind)


def load_strongreject(source: str) -> Sequence[Example]:
    """Subsets: the categories."""
    return content_ids(gather(read_rows(source), _strongreject))


def _strongreject(row: Row) -> Iterable[Example]:
    yield attack("", row.text(row.named("forbidden_prompt", "prompt")), subset=row.text("category"))


FORMATS = (
    Format(
        "sorry-bench",
        Axis.TEXT_SAFETY,
        load_sorry_bench,
        "sorry-bench/sorry-bench-202503:question.jsonl",
        "https://arxiv.org/abs/2406.14598",
    ),
    Format("advbench", Axis.TEXT_SAFETY, load_advbench, "walledai/AdvBench", "https://arxiv.org/abs/2307.15043"),
    Format("harmbench", Axis.TEXT_SAFETY, load_harmbench, None, "https://arxiv.org/abs/2402.04249"),
    Format(
        "wildjailbreak",
        None,
        load_wildjailbreak,
        "allenai/wildjailbreak:eval/eval.tsv",
        "https://arxiv.org/abs/2406.18510",
    ),
    Format(
        "strongreject",
        Axis.TEXT_SAFETY,
        load_strongreject,
        "walledai/StrongREJECT",
        "https://arxiv.org/abs/2402.10260",
    ),
)
