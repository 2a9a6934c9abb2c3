"""An adapter folder that PEFT loads, written tensor by tensor; it appears when it is complete.

Ranks are known only when all tensors have been computed, so their data wait in a nameless file beside the folder.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from safegraft.adapter.low_rank import Factors
from safegraft.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from safegraft.checkpoint.adapter_modules import PREFIX
from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.write import encode_header
from safegraft.engine.staging import MANIFEST, FileDigest, StagedFolder
from safegraft.errors import OutputError

CHUNK = 1 << 20  # bytes copied at a time
METADATA = {"format": "pt"}
_DTYPES = {one.torch: one for one in DType if one.is_float}


@dataclass
class AdapterWriter:
    """Gathers tensors; `write` makes the folder. Use as a context manager.

    out: the folder to appear, which decides where the waiting data lie.
    """

    out: Path
    ranks: dict[str, int] = field(default_factory=dict[str, int])  # module -> rank, of those that have factors
    _tensors: list[tuple[str, DType, tuple[int, ...]]] = field(default_factory=list[tuple[str, DType, tuple[int, ...]]])

    def __enter__(self) -> "AdapterWriter":
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._data: IO[bytes] = tempfile.TemporaryFile(dir=self.out.parent)
        except OSError as error:
            raise OutputError(f"{self.out}: cannot write: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    def add_factors(self, module: str, factors: Factors, *, embedding: bool = False) -> None:
        """A module's LoRA, whose scale is 1."""
        self.ranks[module] = factors.rank
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        self.add_tensor(f"{module}.{a}", factors.a)
        self.add_tensor(f"{module}.{b}", factors.b)

    def add_tensor(self, name: str, tensor: torch.Tensor) -> None:
        """A tensor by its name in memory."""
        self._tensors.append((PREFIX + name, _DTYPES[tensor.dtype], tuple(tensor.shape)))
        try:
            self._data.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        except OSError as error:
            raise OutputError(f"{self.out}: cannot write: {error.strerror}") from error

    def write(
        self,
        folder: StagedFolder,
        config: Mapping[str, Any],
        manifest: Mapping[str, Any],
        verify: Callable[[], None],
    ) -> dict[str, FileDigest]:
        """Write config, weights and manifest into `folder` and let it appear.

        config: of PEFT, beyond what the ranks say. verify: called before the folder appears; raises when the inputs
        have changed since they were read.
        """
        folder.write(ADAPTER_CONFIG, _json({**_config(self.ranks), **config}))
        self._write_weights(folder)
        files = {name: {"size": one.size, "sha256": one.sha256} for name, one in folder.finished.items()}
        folder.write(MANIFEST, _json({"plan_digest": folder.digest, **manifest, "files": files}))
        verify()
        folder.commit()
        return dict(folder.finished)

    def _write_weights(self, folder: StagedFolder) -> None:
        header, _ = encode_header(self._tensors, METADATA)
        self._data.flush()
        size = os.fstat(self._data.fileno()).st_size
        self._data.seek(0)
        with folder.file(ADAPTER_WEIGHTS, len(header) + size) as target:
            target.append(header)
            while chunk := self._data.read(CHUNK):
                target.append(chunk)
            target.finish()


def _config(ranks: Mapping[str, int]) -> dict[str, Any]:
    """The settings that give every module the scale 1: alpha is the rank."""
    rank = max(ranks.values(), default=1)
    other = {module: own for module, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": _names(ranks),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }


def _names(ranks: Mapping[str, int]) -> Sequence[str]:
    return sorted(ranks)


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
