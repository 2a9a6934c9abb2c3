"""A PEFT adapter: adapter_config.json and adapter_model.safetensors, checked like a checkpoint.

It is a Checkpoint of its own tensors. What it does to a model's is `lora.py`'s business.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from safegraft.checkpoint.adapter_modules import AdapterContent, read_modules
from safegraft.checkpoint.adapter_settings import LoraSettings, read_settings
from safegraft.checkpoint.files import Folder, raise_changed
from safegraft.checkpoint.header import Header, read_header
from safegraft.checkpoint.hub_cache import HUB_NAME
from safegraft.checkpoint.identity import HASHED_BYTES, WeightFile, identify
from safegraft.checkpoint.sidecars import MAX_SIDECAR_BYTES
from safegraft.checkpoint.strict_json import parse_object
from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.checkpoint.weights import INDEX_FILE, SINGLE_FILE, natural_order
from safegraft.errors import CheckpointError, Problem

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"


def is_adapter(names: Collection[str]) -> bool:
    """Whether a folder with files of these names holds an adapter and no model."""
    return ADAPTER_CONFIG in names and SINGLE_FILE not in names and INDEX_FILE not in names


class Adapter(Checkpoint):
    """A LoRA that can be added to weights. settings, content: what its config and its tensors say."""

    settings: LoraSettings
    content: AdapterContent

    @property
    def base_name(self) -> str | None:
        """The Hub name of the model that it was trained on, where its config has one."""
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) and HUB_NAME.fullmatch(name) else None

    def tokens(self) -> Mapping[str, int] | None:
        return None

    def _read_config(self, names: Collection[str], read: Callable[[str, int], bytes]) -> None:
        """Set what follows from the adapter's config. names: of its files. read(file, limit): a whole one.

        Raises CheckpointError when it is no LoRA that can be added to weights, or its weights are not there.
        """
        _require_files(names, self.name)
        content = read(ADAPTER_CONFIG, MAX_SIDECAR_BYTES)
        self.config = parse_object(content, f"{self.name}/{ADAPTER_CONFIG}")
        self.sidecars = {ADAPTER_CONFIG: content}
        self.settings = read_settings(self.config, f"{self.name}/{ADAPTER_CONFIG}")

    def _read_tensors(self, header: Header) -> None:
        """Set what follows from the header of its weights. Raises CheckpointError when they do not fit the config."""
        self.tensors = {one: header.tensors[one] for one in sorted(header.tensors, key=natural_order)}
        self.content = read_modules(self.tensors, self.settings, f"{self.name}/{ADAPTER_WEIGHTS}")


class AdapterFolder(Adapter):
    """Opens an adapter folder and keeps its weight file open until `close`.

    Arguments as for FolderCheckpoint.

    Raises CheckpointError when it is no LoRA that can be added to weights, or not sound.
    """

    def __init__(
        self, path: Path, name: str, digests: Mapping[str, str] | None = None, root: Path | None = None
    ) -> None:
        self.name = name
        folder = Folder(path, name, root)
        self._read_config(folder.names, folder.read)
        self._file = folder.open(ADAPTER_WEIGHTS)
        try:
            header = read_header(self._file.read, self._file.size, ADAPTER_WEIGHTS, name)
            self._read_tensors(header)
            sha256 = (digests or {}).get(ADAPTER_WEIGHTS) or folder.blob_sha256(ADAPTER_WEIGHTS)
            if sha256 is None and self._file.size <= HASHED_BYTES:
                sha256 = self._file.sha256()
            self.identity = identify(self, [WeightFile(ADAPTER_WEIGHTS, self._file.size, header.sha256, sha256)])
        except BaseException:
            self.close()
            raise

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        if start < 0 or start + buffer.nbytes > tensor.nbytes:
            raise ValueError(f"{tensor.name} has {tensor.nbytes} bytes: {buffer.nbytes} from {start} are out of range")
        count = self._file.read_into(buffer.cast("B"), tensor.offset + start) if buffer.nbytes else 0
        if count < buffer.nbytes:
            self._file.verify_unchanged()
            raise CheckpointError(Problem(self._file.where, f"ends inside tensor {tensor.name}"))

    def modified_ns(self) -> int:
        return self._file.signature.mtime_ns

    def verify_unchanged(self) -> None:
        raise_changed([self._file])

    def close(self) -> None:
        self._file.close()


def _require_files(names: Collection[str], name: str) -> None:
    if ADAPTER_CONFIG not in names:
        what = "is a model, not an adapter" if {SINGLE_FILE, INDEX_FILE} & set(names) else "is not an adapter"
        raise CheckpointError(Problem(name, f"{what}: it has no {ADAPTER_CONFIG}. An adapter stands after the `+`"))
    if ADAPTER_WEIGHTS not in names:
        message = f"has no {ADAPTER_WEIGHTS}: is the download complete?"
        if _PICKLE in names:
            message = (
                f"has its weights only as pickle ({_PICKLE}). Loading a pickle can run any code, so only safetensors "
                "is read. If you trust its origin, load it with PEFT and `save_pretrained` it"
            )
        raise CheckpointError(Problem(name, message))
