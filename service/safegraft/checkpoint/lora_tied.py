"""What an adapter does to a base whose output head is its embedding: such a base has one matrix for the two.

PEFT trains the two apart unless `ensure_weight_tying` is set, and saves both where it is.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safegraft.checkpoint.adapter import Adapter
from safegraft.checkpoint.adapter_modules import LoraModule
from safegraft.checkpoint.adapter_names import Target, has_place
from safegraft.checkpoint.config import subconfigs
from safegraft.checkpoint.findings import Findings, listed
from safegraft.checkpoint.strict_json import as_list
from safegraft.checkpoint.types import Checkpoint, TensorInfo

if TYPE_CHECKING:
    import torch

_COMPARED = 1 << 20  # bytes
_ADVICE = (
    "the base ties its output head to its embedding, and the adapter does not change the two alike: no tied model is "
    "what was trained. Train it with ensure_weight_tying; or untie the base (load it with tie_word_embeddings=False, "
    "give lm_head the embedding's weights, save it) and add the adapter to that"
)


class TiedHead:
    """Compares what an adapter does to the embedding and to the head of `base`."""

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        self._base = base
        self._adapter = adapter
        levels = [base.config, *(inner for _, inner in subconfigs(base.config))]
        self._vocabulary = {size for level in levels if isinstance(size := level.get("vocab_size"), int)}
        said = [level["tie_word_embeddings"] for level in levels if "tie_word_embeddings" in level]
        # Where no config says it, it is the architecture's default: no other place of a head is left.
        ties = any(one is True for one in said) or (not said and _has_a_head(base))
        matrices = [one for one in base.tensors.values() if self._has_a_row_a_token(one)]
        self._matrix = matrices[0] if ties and len(matrices) == 1 else None

    def settle(self, targets: Sequence[Target], findings: Findings) -> list[Target]:
        """`targets` without those of the head, which has no tensor of its own in a tied base.

        Where the adapter does not do the same to head and embedding, and does not say that they are tied, that is
        told to `findings`.
        """
        matrix = self._matrix
        if matrix is None:
            return list(targets)
        heads = [one for one in targets if self._is_head(one)]
        tables = [one for one in targets if has_place(one.name, {matrix.name: matrix})]
        changed = [head.name for head in heads if self._changes(head.name)]
        apart = [head for head in changed if not any(self._are_alike(table.name, head) for table in tables)]
        if not changed and not self._adapter.settings.tied:
            apart = [table.name for table in tables if self._changes(table.name)]
        if apart:
            findings.add(f"{listed(apart)}: {_ADVICE}")
        return [one for one in targets if one not in heads]

    def _has_a_row_a_token(self, tensor: TensorInfo) -> bool:
        in_layer = any(part.isdecimal() for part in tensor.name.split("."))
        return len(tensor.shape) == 2 and not in_layer and tensor.shape[0] in self._vocabulary

    def _is_head(self, target: Target) -> bool:
        rows = {shape[0] for shape in target.shapes if len(shape) == 2}
        return bool(rows & self._vocabulary) and not has_place(target.name, self._base.tensors)

    def _parts(self, name: str) -> tuple[LoraModule | None, TensorInfo | None]:
        """What is added to a tensor, and what takes its place: None where that is what the base has anyway."""
        content, matrix = self._adapter.content, self._matrix
        assert matrix is not None  # only asked of tied bases
        replaced = content.replaced.get(name)
        if replaced is not None and _same_content(self._adapter, replaced, self._base, matrix):
            replaced = None
        return content.modules.get(name.removesuffix(".weight")), replaced

    def _changes(self, name: str) -> bool:
        return self._parts(name) != (None, None)

    def _are_alike(self, table: str, head: str) -> bool:
        (added, whole), (head_added, head_whole) = self._parts(table), self._parts(head)
        if (whole is None) != (head_whole is None) or (added is None) != (head_added is None):
            return False
        same_whole = (
            whole is None or head_whole is None or _same_content(self._adapter, whole, self._adapter, head_whole)
        )
        return same_whole and (added is None or head_added is None or self._same_lora(added, head_added))

    def _same_lora(self, table: LoraModule, head: LoraModule) -> bool:
        """A table [in, out] gets (B A) turned, a head B A: the factors change places."""
        plain = all(one.magnitude is None and one.bias is None for one in (table, head))
        if not plain or not table.embedding or head.embedding or table.scale != head.scale:
            return False
        return self._turned(table.a, head.b) and self._turned(table.b, head.a)

    def _turned(self, one: TensorInfo, other: TensorInfo) -> bool:
        import torch

        return torch.equal(_read(self._adapter, one).T, _read(self._adapter, other))


def _has_a_head(base: Checkpoint) -> bool:
    architectures = as_list(base.config.get("architectures")) or [""]
    return str(architectures[0]).endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel"))


def _read(checkpoint: Checkpoint, tensor: TensorInfo) -> "torch.Tensor":
    import torch

    content = torch.empty(tensor.nbytes, dtype=torch.uint8)
    checkpoint.read_into(tensor, 0, content.numpy().data)
    return content.view(tensor.dtype.torch).view(tensor.shape)


def _same_content(here: Checkpoint, one: TensorInfo, there: Checkpoint, other: TensorInfo) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    for start in range(0, one.nbytes, _COMPARED):
        length = min(_COMPARED, one.nbytes - start)
        contents = [bytearray(length), bytearray(length)]
        here.read_into(one, start, memoryview(contents[0]))
        there.read_into(other, start, memoryview(contents[1]))
        if contents[0] != contents[1]:
            return False
    return True
