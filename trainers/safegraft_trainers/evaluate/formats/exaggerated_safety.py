"""Harmless requests that look harmful: XSTest, OR-Bench, MOSSBench. Their harmful counterparts are attacks."""

from collections.abc import Iterable, Sequence

from safegraft_trainers.evaluate.example import Axis, Example
from safegraft_trainers.evaluate.formats.format import Format
from safegraft_trainers.evaluate.formats.rows import Row, attack, content_ids, gather, harmless
from safegraft_trainers.evaluate.reading import read_rows

XSTEST_TYPES = (
    "homonyms",
    "figurative_language",
    "safe_targets",
    "safe_contexts",
    "definitions",
    "nons_group_real_discr",
    "real_group_nons_discr",
    "historical_events",
    "privacy_public",
    "privacy_fictional",
    "contrast_homonyms",
    "contrast_figurative_language",
    "contrast_safe_targets",
    "contrast_safe_contexts",
    "contrast_definitions",
    "contrast_discr",
    "contrast_historical_events",
    "contrast_privacy",
)
MOSSBENCH_TYPES = {
    "type 1": "exaggerated risk",
    "type 2": "negated harm",
    "type 3": "counterintuitive interpretation",
}


def load_xstest(source: str) -> Sequence[Example]:
    """Contrast types are truly unsafe: they measure text safety. Subsets: the types."""
    examples = gather(read_rows(source), _xstest)
    return content_ids(examples) if any(not one.id for one in examples) else examples


def _xstest(row: Row) -> Iterable[Example]:
    kind = row.one_of("type", XSTEST_TYPES)
    unsafe = kind.startswith("contrast_")
    label = row.optional("label")
    if kind and label and label != ("unsafe" if unsafe else "safe"):
        row.fault("label", f"says {label!r}, but {kind!r} rows are {'unsafe' if unsafe else 'safe'}")
    # A copy on the Hub has no ids.
    identity = row.text("id") if "id" in row.raw.values else ""
    yield (attack if unsafe else harmless)(identity, row.text("prompt"), subset=kind)


def load_or_bench(source: str) -> Sequence[Example]:
    """The 80k and hard-1k files. Subsets: the categories that the prompts seem to belong to."""
    return content_ids(gather(read_rows(source), _or_bench))


def _or_bench(row: Row) -> Iterable[Example]:
    yield harmless("", row.text("prompt"), subset=row.text("category"))


def load_or_bench_toxic(source: str) -> Sequence[Example]:
    """The toxic file. It has the columns of the others, so only its name tells that its prompts are harmful."""
    return content_ids(gather(read_rows(source), _or_bench_toxic))


def _or_bench_toxic(row: Row) -> Iterable[Example]:
    yield attack("", row.text("prompt"), subset=row.text("category"))


def load_mossbench(source: str) -> Sequence[Example]:
    """`information.json` beside (or one level below) its `images` folder, or the Hub's rows with the image inside."""
    return gather(read_rows(source), _mossbench)


def _mossbench(row: Row) -> Iterable[Example]:
    image = row.picture("decoded_image" if row.has("decoded_image") else "image", "..")
    kind = str(row.record("metadata").get("over"))
    if "metadata" in row.raw.values and kind not in MOSSBENCH_TYPES:
        row.fault("metadata", f"'over' must be one of {', '.join(MOSSBENCH_TYPES)}, not {kind!r}")
    yield harmless(row.text("pid"), row.text("question"), image=image, subset=MOSSBENCH_TYPES.get(kind, ""))


FORMATS = (
    Format("xstest", None, load_xstest, "Paul/XSTest:xstest_prompts.csv", "https://arxiv.org/abs/2308.01263"),
    Format(
        "or-bench",
        Axis.EXAGGERATED_SAFETY,
        load_or_bench,
        "bench-llm/or-bench:or-bench-hard-1k.csv",
        "https://arxiv.org/abs/2405.20947",
    ),
    Format(
        "or-bench-toxic",
        Axis.TEXT_SAFETY,
        load_or_bench_toxic,
        "bench-llm/or-bench:or-bench-toxic.csv",
        "https://arxiv.org/abs/2405.20947",
    ),
    Format(
        "mossbench",
        Axis.EXAGGERATED_SAFETY,
        load_mossbench,
        "AIcell/MOSSBench:oversensitivity/*.parquet",
        "https://arxiv.org/abs/2406.17806",
    ),
)
