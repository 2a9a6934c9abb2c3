"""VLGuard's train.json (arXiv 2402.02207): pictures, each with instructions and what a safe model answers.

{"id", "image": "bad_ads/x.png", "safe": false, "harmful_category": ..., "instr-resp": [{"instruction", "response"}]}
{"id", "image": ..., "safe": true, "instr-resp": [{"safe_instruction", "response"}, {"unsafe_instruction", "response"}]}
"""

# datasets comes with no stubs, and types itself in part.
# pyright: reportMissingTypeStubs=false

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from safegraft.checkpoint.strict_json import as_list, as_object
from safegraft_trainers.data.columns import SUPERVISED
from safegraft_trainers.data.conversations import row_id
from safegraft_trainers.data.faults import Unusable
from safegraft_trainers.data.messages import answered, asked, kind, text
from safegraft_trainers.data.reading import read
from safegraft_trainers.data.sources import Reference, Row

PAIRS = "instr-resp"
INSTRUCTIONS = ("instruction", "safe_instruction", "unsafe_instruction")
FEATURES = Features({**SUPERVISED, "unsafe": Value("bool")})


def load_vlguard(
    source: Reference,
    image_folder: str | Path | None = None,
    *,
    verify: bool = True,
    skip_faulty: bool = False,
) -> Dataset:
    """One row for each instruction: columns id, images, prompt, completion, unsafe.

    unsafe: whether the model should refuse: the picture is unsafe, or the instruction is. Arguments and errors as for
    `load_llava`. VLGuard's images lie in the folder `train` beside its train.json: that is the `image_folder`.
    """
    return read(source, image_folder, _convert, FEATURES, verify=verify, skip_faulty=skip_faulty)


def _convert(row: Row, number: int, images: Callable[[Any], list[int]]) -> list[dict[str, Any]]:
    safe = row.get("safe")
    if not isinstance(safe, bool):
        raise Unusable(f"`safe` is {kind(safe)}; it must be true or false")
    pictures = images(row.get("image"))
    if len(pictures) != 1:
        raise Unusable(f"has {len(pictures)} images (`image`); it must have one")
    pairs = as_list(row.get(PAIRS))
    if not pairs:
        raise Unusable(f"`{PAIRS}` is {'empty' if pairs == [] else kind(row.get(PAIRS))}; it must list instructions")
    name = row_id(row, number)
    made: list[dict[str, Any]] = []
    for place, value in enumerate(pairs, 1):
        instruction, said, response = _pair(as_object(value), f"`{PAIRS}` {place}")
        made.append(
            {
                "id": name if len(pairs) == 1 else f"{name}/{place}",
                "images": pictures,
                "prompt": asked(said, 1, f"its `{instruction}`"),
                "completion": answered(response, f"the `response` to its `{instruction}`"),
                "unsafe": not safe or instruction == "unsafe_instruction",
            }
        )
    return made


def _pair(pair: Mapping[str, Any] | None, where: str) -> tuple[str, str, str]:
    """Which kind of instruction it is, the instruction, the response."""
    if pair is None:
        raise Unusable(f"{where} must be an object with an instruction and its response")
    kinds = [name for name in INSTRUCTIONS if pair.get(name) is not None]  # parquet fills in the others with null
    if len(kinds) != 1:
        raise Unusable(f"{where} has {len(kinds)} of {', '.join(INSTRUCTIONS)}; it must have one")
    said = text(pair[kinds[0]], f"{where}: its `{kinds[0]}`")
    return kinds[0], said, text(pair.get("response"), f"{where}: its `response`")
