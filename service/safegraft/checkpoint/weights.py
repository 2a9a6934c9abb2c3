"""Which safetensors files hold a checkpoint's weights, and whether the index and they agree.

Works on names and parsed headers: opens nothing.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from safegraft.checkpoint.findings import Findings, listed, shown
from safegraft.checkpoint.header import Header
from safegraft.checkpoint.strict_json import as_object, parse_object
from safegraft.checkpoint.types import TensorInfo
from safegraft.errors import CheckpointError, Problem

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SUFFIX = ".safetensors"

MAX_INDEX_BYTES = 64 * 2**20
MAX_CHECKPOINT_TENSORS = 200_000
MAX_SHARDS = 4_096  # each is held open

_PICKLE = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle)", re.IGNORECASE)
# Pickles that training leaves behind, which are no weights.
_LEFTOVER = re.compile(r"(training_args|optimizer|scheduler|rng_state|scaler|random_states).*")
_OTHER_FORMAT = re.compile(r".*\.(gguf|ggml|onnx|h5|msgpack|tflite|npz)", re.IGNORECASE)
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def find_layout(names: Collection[str], checkpoint_name: str) -> str:
    """The file that a reader of these files starts from: SINGLE_FILE or INDEX_FILE.

    With both there, transformers takes the single file and never looks at the index. One of the two
    is then most likely a leftover, and merging the wrong one would go unnoticed, so the index is
    read, and `parse_index` refuses one that says anything else than the single file.
    """
    if INDEX_FILE in names:
        return INDEX_FILE
    if SINGLE_FILE in names:
        return SINGLE_FILE
    raise CheckpointError(Problem(checkpoint_name, _what_is_there(names)))


def parse_index(content: bytes, names: Collection[str], checkpoint_name: str) -> dict[str, str]:
    """The index's weight_map (tensor -> file), its values bare names of files in `names`.

    Raises CheckpointError with all that is wrong with it.
    """
    where = f"{checkpoint_name}/{INDEX_FILE}"
    weight_map = as_object(parse_object(content, where).get("weight_map"))
    if not weight_map:
        raise CheckpointError(Problem(where, "must have a weight_map from tensor names to file names"))
    findings = Findings(where)
    if len(weight_map) > MAX_CHECKPOINT_TENSORS:
        findings.add(f"lists {len(weight_map):,} tensors; {MAX_CHECKPOINT_TENSORS:,} are accepted")
    files = list(dict.fromkeys(str(file) for file in weight_map.values()))
    if len(files) > MAX_SHARDS:
        findings.add(f"lists {len(files):,} files; {MAX_SHARDS:,} are accepted")
        files = []
    for file in files:
        if problem := _file_problem(file, names):
            findings.add(f"weight_map names {shown(file)}, {problem}")
    if SINGLE_FILE in names and files != [SINGLE_FILE]:
        findings.add(
            f"stands beside {SINGLE_FILE}, which it does not list: the folder holds two sets of weights. "
            f"Remove the one that is left over (transformers would load {SINGLE_FILE})"
        )
    findings.raise_if_any()
    return {tensor: str(file) for tensor, file in weight_map.items()}


def join_shards(
    headers: Mapping[str, Header], weight_map: Mapping[str, str] | None, checkpoint_name: str
) -> dict[str, TensorInfo]:
    """All tensors, in natural order of their names.

    Raises CheckpointError where shards and index disagree, or when there is no tensor at all.
    """
    findings = Findings(checkpoint_name)
    tensors: dict[str, TensorInfo] = {}
    if weight_map is not None:
        _compare(headers, weight_map, findings)
    for header in headers.values():
        tensors.update(header.tensors)
    if not tensors:
        findings.add("has no tensors: its weight files are empty")
    if len(tensors) > MAX_CHECKPOINT_TENSORS:
        findings.add(f"holds {len(tensors):,} tensors; {MAX_CHECKPOINT_TENSORS:,} are accepted")
    findings.raise_if_any()
    return {name: tensors[name] for name in sorted(tensors, key=natural_order)}


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts layer 10 after layer 9."""
    parts = re.split(r"([0-9]+)", name)  # numbers at the odd places
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _file_problem(file: str, names: Collection[str]) -> str | None:
    if "/" in file or "\\" in file or not file.isprintable():
        return "which is not the bare name of a file in the folder"
    if not file.endswith(SUFFIX):
        return "which is not a .safetensors file"
    return None if file in names else "which is not there: is the download complete?"


def _compare(headers: Mapping[str, Header], weight_map: Mapping[str, str], findings: Findings) -> None:
    """The index lists each tensor of each shard, once, in the right shard."""
    listed_in: dict[str, list[str]] = {file: [] for file in headers}
    for tensor, file in weight_map.items():
        listed_in[file].append(tensor)
    for file, header in headers.items():
        absent = [tensor for tensor in listed_in[file] if tensor not in header.tensors]
        if absent:
            findings.add(f"{INDEX_FILE} lists {listed(absent)} in {shown(file)}, which does not hold it")
        unlisted = [tensor for tensor in header.tensors if weight_map.get(tensor) is None]
        if unlisted:
            findings.add(f"{shown(file)} holds {listed(unlisted)}, which {INDEX_FILE} does not list")
        elsewhere = [tensor for tensor in header.tensors if weight_map.get(tensor, file) != file]
        if elsewhere:
            findings.add(f"{shown(file)} holds {listed(elsewhere)}, which {INDEX_FILE} lists in another file")


def _what_is_there(names: Collection[str]) -> str:
    """Why there are no weights to read, and what to do about it."""
    pickles = _matching(_PICKLE, [name for name in names if not _LEFTOVER.fullmatch(name)])
    safetensors = sorted(name for name in names if name.endswith(SUFFIX))
    others = _matching(_OTHER_FORMAT, names)
    missing = f"has neither {SINGLE_FILE} nor {INDEX_FILE}"
    if any(_SHARD.fullmatch(name) for name in safetensors):
        return f"has shards ({listed(safetensors)}) but no {INDEX_FILE} that lists their tensors: download it too"
    if any(name.startswith("adapter_model") for name in names):
        return (
            f"{missing}, only what looks like a PEFT adapter without its adapter_config.json: an adapter is named "
            "together with its model, as BASE+ADAPTER"
        )
    if safetensors:
        return f"{missing}. It holds {listed(safetensors)}: save the model with `save_pretrained`, or rename that file"
    if pickles:
        return (
            f"has its weights only as pickle ({listed(pickles)}). Loading a pickle can run any code, so only "
            "safetensors is read. If you trust its origin, load it with transformers and `save_pretrained` it: "
            "that writes safetensors"
        )
    if others:
        return f"{missing}. It holds {listed(others)}, a format that is not read: use the safetensors weights"
    return f"{missing}: no weights are here"


def _matching(pattern: re.Pattern[str], names: Collection[str] | Sequence[str]) -> list[str]:
    return sorted(name for name in names if pattern.fullmatch(name))
