"""Loads a checkpoint whole, or a merge that no disk has seen, with what it is spoken to through.

Shared by training, evaluation, sweeps and analysis. Knows transformers and safegraft; nothing of data or judges.
"""

# transformers types its automatic classes in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import contextlib
import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft.errors import CheckpointError, Problem

if TYPE_CHECKING:
    from safegraft import MergedCheckpoint


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that answers or learns.

    model: a transformers model with a language head, in evaluation mode. front: its processor where it sees images,
    else its tokenizer; either has the chat template. digest: equal for equal weights and tokenizer.
    """

    name: str
    digest: str
    model: Any
    front: Any
    multimodal: bool

    @property
    def tokenizer(self) -> Any:
        return self.front.tokenizer if self.multimodal else self.front

    @property
    def device(self) -> Any:
        return self.model.device


def load(reference: str, *, dtype: str = "auto", device: str = "cpu") -> Loaded:
    """Load a folder, a model of the local Hub cache (`org/name@revision`) or either with an adapter (`MODEL+ADAPTER`).

    dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
    Raises CheckpointError when it does not load whole: transformers itself would only warn and fill in random numbers.
    Raises UsageError for a device that is not there.
    """
    from safegraft.calibration.model import read_tensor
    from safegraft.calibration.wording import sidecar_folder
    from safegraft.engine.execute import usable
    from safegraft.local import open_model

    usable(device)
    checkpoint = open_model(reference)
    with sidecar_folder(checkpoint) as folder:
        tensors = {name: read_tensor(checkpoint, name) for name in checkpoint.tensors}
        return _load(checkpoint.name, checkpoint.identity.digest, folder, tensors, dtype, device)


def load_merged(merged: "MergedCheckpoint", name: str, *, dtype: str = "auto", device: str = "cpu") -> Loaded:
    """Load a merge from `safegraft.open`, computed tensor by tensor; nothing but its small files touches the disk."""
    with tempfile.TemporaryDirectory(prefix="safegraft-") as scratch:
        folder = Path(scratch)
        for file, virtual in merged.files.items():
            # The manifest holds the digests of all weights: reading it would compute every merge a second time.
            if not file.endswith((".safetensors", ".safetensors.index.json")) and file != "safegraft.json":
                path = folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(virtual.read(0, virtual.size))
        return _load(name, merged.plan.digest, folder, dict(merged.tensors), dtype, device)


def front_of(folder: Path, *, multimodal: bool) -> Any:
    """The processor, or the tokenizer, of a folder, padding on the left as generation wants it.

    Raises CheckpointError when transformers cannot load it.
    """
    import transformers

    from safegraft_trainers.processors import load_processor

    config_of: Any = transformers.AutoConfig
    tokenizer_of: Any = transformers.AutoTokenizer
    with _explained(folder.name, "its tokenizer or processor cannot be loaded"):
        if multimodal:
            config = config_of.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            front = load_processor(folder, config, local_files_only=True)
        else:
            front = tokenizer_of.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer: Any = front.tokenizer if multimodal else front
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return front


def _load(name: str, digest: str, folder: Path, tensors: Mapping[str, Any], dtype: str, device: str) -> Loaded:
    import transformers
    from transformers.utils import logging

    from safegraft.calibration.request import architecture, takes_images

    logging.disable_progress_bar()  # of shards that are no shards: all is there already

    auto: Any = transformers.AutoConfig
    with _explained(name, "config.json cannot be used"):
        config = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    document = config.to_dict()
    multimodal = takes_images(document)
    kind: Any = getattr(transformers, architecture(document) or "", None)
    if kind is None:
        message = f"transformers {transformers.__version__} has no model class for its config.json"
        raise CheckpointError(Problem(name, message))
    with _explained(name, "transformers cannot load it"):
        # `ignore_mismatched_sizes` reports shapes with the rest instead of raising at the first.
        model, loading = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    faults = {kind: sorted(map(str, names)) for kind, names in loading.items() if names}
    if faults:
        listed = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(names)}" for kind, names in faults.items())
        raise CheckpointError(Problem(name, f"does not load whole: {listed}"))
    return Loaded(name, digest, model.to(device).eval(), front_of(folder, multimodal=multimodal), multimodal)


@contextlib.contextmanager
def _explained(name: str, what: str) -> Generator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # configs, tokenizers and processors are strangers' code and data
        raise CheckpointError(Problem(name, f"{what}: {type(error).__name__}: {error}")) from error
