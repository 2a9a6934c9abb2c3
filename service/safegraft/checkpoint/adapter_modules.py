"""Which tensors of an adapter belong together: a LoRA's factors by module, and the tensors that it replaces.

Names and shapes alone; where in a model a module lies is `adapter_names.py`'s business.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from safegraft.checkpoint.adapter_declared import lacking
from safegraft.checkpoint.adapter_settings import LoraSettings
from safegraft.checkpoint.findings import Findings, shown
from safegraft.checkpoint.types import TensorInfo

PREFIX = "base_model.model."  # what PEFT's wrappers add to every name
_PARTS = re.compile(
    r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(?:\.weight)?"
)
_FOREIGN = re.compile(
    r"(?:.*\.)?(?:lora_\w+|token_adapter|ia3_l|prompt_embeddings|vera_\w+|hada_\w+|lokr_\w+)(?:\..*)?"
)
_WRAPPER = ".base_layer."  # a wrapped module keeps its own weight and bias under this name


@dataclass(frozen=True, slots=True)
class LoraModule:
    """Adds `scale` B A to the weight of one module.

    a: [r, in]. b: [out, r]. magnitude: DoRA's, [out]. bias: added to the module's bias, [out]. embedding: the weight
    is a table [in, out]; of a linear layer it is [out, in], or [in, out] where that is how the model stores it.
    """

    name: str
    a: TensorInfo
    b: TensorInfo
    scale: float
    embedding: bool
    magnitude: TensorInfo | None = None
    bias: TensorInfo | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def inputs(self) -> int:
        return self.a.shape[1]

    @property
    def outputs(self) -> int:
        return self.b.shape[0]


@dataclass(frozen=True, slots=True)
class AdapterContent:
    """modules: by name, in the adapter's order. replaced: name of a tensor in the model -> what takes its place."""

    modules: Mapping[str, LoraModule]
    replaced: Mapping[str, TensorInfo]


def read_modules(tensors: Mapping[str, TensorInfo], settings: LoraSettings, where: str) -> AdapterContent:
    """Sort an adapter's tensors. Raises CheckpointError with every tensor that has no meaning or a wrong shape."""
    findings = Findings(where)
    parts: dict[str, dict[str, TensorInfo]] = {}
    replaced: dict[str, TensorInfo] = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix(PREFIX)
        found = _PARTS.fullmatch(bare)
        if not tensor.dtype.is_float:
            findings.add(f"tensor {shown(name)} holds {tensor.dtype} values, which are not weights")
            continue
        if not found and _FOREIGN.fullmatch(bare):
            findings.add(f"tensor {shown(name)} is of a kind of adapter that cannot be added to weights")
            continue
        place, key = (parts.setdefault(found[1], {}), found[2]) if found else (replaced, bare.replace(_WRAPPER, "."))
        if key in place:
            findings.add(f"tensors {shown(place[key].name)} and {shown(name)} mean the same; only one can count")
        place.setdefault(key, tensor)
    modules = {name: _module(name, found, settings, findings) for name, found in parts.items()}
    if not modules and not replaced:
        findings.add("holds no tensors")
    for name in lacking(settings.saved, replaced):
        findings.add(f"lacks {shown(name)}, which modules_to_save in its config names")
    findings.raise_if_any()
    return AdapterContent({name: module for name, module in modules.items() if module is not None}, replaced)


def _module(name: str, parts: dict[str, TensorInfo], settings: LoraSettings, findings: Findings) -> LoraModule | None:
    """None, and a finding, where its tensors do not make a LoRA."""
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    keys = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    magnitude, bias = parts.get("lora_magnitude_vector"), parts.get("lora_B.bias")
    expected = {*keys, *(["lora_magnitude_vector"] if settings.dora else [])}
    if settings.bias and not embedding:
        expected.add("lora_B.bias")
    where = f"module {shown(name)}"
    if parts.keys() != expected:
        lacking, beyond = sorted(expected - parts.keys()), sorted(parts.keys() - expected)
        findings.add(
            f"{where} "
            + " and ".join(
                ([f"lacks {', '.join(lacking)}"] if lacking else [])
                + ([f"has {', '.join(beyond)}, which its config does not speak of"] if beyond else [])
            )
        )
        return None
    a, b = parts[keys[0]], parts[keys[1]]
    if len(a.shape) > 2 or len(b.shape) > 2:
        findings.add(f"{where} adapts a convolution ({list(a.shape)} and {list(b.shape)}), which is not supported")
        return None
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        findings.add(f"{where}: A is {list(a.shape)} and B is {list(b.shape)}; [r, in] and [out, r] fit together")
        return None
    if a.shape[0] != settings.rank_of(name):
        findings.add(f"{where} has rank {a.shape[0]}; its config says {settings.rank_of(name)}")
        return None
    for key, vector in (("lora_magnitude_vector", magnitude), ("lora_B.bias", bias)):
        if vector is not None and vector.shape != (b.shape[0],):
            findings.add(f"{where}: {key} is {list(vector.shape)}, not [{b.shape[0]}]")
            return None
    return LoraModule(name, a, b, settings.scale_of(name), embedding, magnitude, bias)
