"""The difference of two models as an adapter: for each linear weight, the best factors of tuned minus base.

Reads and writes tensor by tensor; holds one weight of each model and its decomposition at a time. What a LoRA cannot
hold is reported, or saved whole.
"""

import fnmatch
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from safegraft.adapter.folder import AdapterWriter
from safegraft.adapter.low_rank import factorise
from safegraft.adapter.names import Place, Places, places_in_memory
from safegraft.checkpoint.hub_cache import hub_name
from safegraft.checkpoint.strict_json import as_list
from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.engine.align import align
from safegraft.engine.anatomy import split_layer, ties_head, vocabulary_tensors
from safegraft.engine.identity import identities, public_names
from safegraft.engine.staging import MANIFEST, FileDigest, StagedFolder
from safegraft.errors import AlignmentError, MergeCancelledError, NonFiniteError, Problem, UsageError

FORMAT = 2  # raised whenever the same inputs give other bytes
# What a merge does with what only its host has, and with a head that its input ties; here those are left.
_OF_MERGES = ("; the host's are kept", " ties its output head to ")
_TIED = "the base ties its output head to its embedding"
_ONLY_TUNED = "the base has no such tensor"
Report = Callable[[int, int, str], None]  # bytes done, bytes in all, tensor


@dataclass(frozen=True, slots=True)
class Extracted:
    """One module's factors. energy: the share of the difference's squared norm that they hold."""

    module: str
    tensor: str
    rank: int
    energy: float


@dataclass(frozen=True, slots=True)
class Extraction:
    """left: tensors that differ and are not in the adapter -> why. saved: tensors that are in it whole."""

    out: Path
    digest: str
    modules: tuple[Extracted, ...]
    saved: tuple[str, ...]
    left: dict[str, str]
    notes: tuple[str, ...]
    files: dict[str, FileDigest]
    complete_before: bool


@dataclass(frozen=True, slots=True)
class Wish:
    """rank: the most a module gets. energy: the share a module must hold, 0 to 1. targets: a pattern for the names
    of the base's tensors. save_modules: save whole what a LoRA cannot hold."""

    rank: int | None = None
    energy: float | None = None
    targets: str = "*"
    save_modules: bool = False

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise UsageError("give either a rank or an energy")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"a rank must be at least 1, not {self.rank}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"an energy must be above 0 and at most 1, not {self.energy}")


def extract(
    tuned: Checkpoint,
    base: Checkpoint,
    out: Path,
    wish: Wish,
    *,
    progress: Report = lambda done, total, tensor: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Extraction:
    """Write an adapter for `base` that makes it `tuned`, as far as it can. A vision-language model may be `tuned` to
    the language model that is its base.

    Raises AlignmentError, NonFiniteError, InputChangedError, OutputError, MergeCancelledError.
    """
    return _Extractor(tuned, base, out, wish, progress, cancelled).run()


class _Extractor:
    def __init__(
        self,
        tuned: Checkpoint,
        base: Checkpoint,
        out: Path,
        wish: Wish,
        progress: Report,
        cancelled: Callable[[], bool],
    ) -> None:
        self.tuned, self.base, self.out, self.wish = tuned, base, out, wish
        self.progress, self.cancelled = progress, cancelled
        self.modules: list[Extracted] = []
        self.saved: list[str] = []
        self.left: dict[str, str] = {}
        self.replaced: dict[str, list[str]] = {}  # module -> its tensors that differ and fit no LoRA
        self.whole: list[str] = []  # modules that are saved whole
        self.tied = False  # whether one of them is saved with what is tied to it
        self.untied = False  # whether the tuned model has a head of its own, and the base has not

    def run(self) -> Extraction:
        pairs, notes = self._pairs()
        names = public_names({"tuned": self.tuned.sources, "base": self.base.sources})
        inputs = identities(names, {"tuned": self.tuned, "base": self.base})
        sampled = [one for one in (self.tuned, self.base) if one.identity.scheme == "sampled-sha256"]
        newer_than = max((one.modified_ns() for one in sampled), default=0)
        with StagedFolder(self.out, self._digest(), newer_than=newer_than) as folder:
            if folder.complete:
                return _read_back(folder)
            try:
                places = places_in_memory(self.base)
                with AdapterWriter(folder.partial / "data") as writer:
                    self._compare(pairs, places, writer)
                    self._miss(pairs, places)
                    if self.wish.save_modules:
                        self._save_modules(pairs, places, writer)
                    report = self._report([*notes, *([places.note] if places.note else [])])
                    manifest = {"method": "extract-lora", "inputs": inputs, **report}
                    files = writer.write(folder, self._config(places, writer), manifest, self._verify)
            except BaseException:
                folder.discard()  # there is nothing in it that a rerun could continue
                raise
            return _extraction(folder, report, files, before=False)

    def _pairs(self) -> tuple[dict[str, str], list[str]]:
        """Base tensor -> tuned tensor."""
        if self.base.tensors.keys() <= self.tuned.tensors.keys():
            return {name: name for name in self.base.tensors}, []
        alignment = align(self.tuned, self.base, {}, keep_vocabulary=True)
        if alignment.problems:
            raise AlignmentError([Problem(self.base.name, _not_host(problem)) for problem in alignment.problems])
        pairs: dict[str, str] = {}
        for tuned, base in alignment.tensors.items():
            pairs.setdefault(base, tuned)  # a tied base's embedding meets the tuned model's first, and then its head
        return pairs, [_not_host(note) for note in alignment.notes if not any(one in note for one in _OF_MERGES)]

    def _digest(self) -> str:
        asked = [FORMAT, self.tuned.identity.digest, self.base.identity.digest, asdict(self.wish)]
        versions = [version("safegraft"), version("torch").partition("+")[0]]
        return hashlib.sha256(json.dumps([*asked, *versions]).encode()).hexdigest()

    # -- tensor by tensor -----------------------------------------------------------------------

    def _compare(self, pairs: Mapping[str, str], places: Places, writer: AdapterWriter) -> None:
        done, total = 0, sum(tensor.nbytes for tensor in self.base.tensors.values())
        for name, tensor in self.base.tensors.items():
            if self.cancelled():
                raise MergeCancelledError("stopped; nothing was kept")
            self.progress(done, total, name)
            self._compare_one(tensor, pairs.get(name), places.places[name], writer)
            done += tensor.nbytes
        self.progress(total, total, "")
        if not writer.ranks:  # PEFT loads no adapter without a LoRA
            raise AlignmentError(
                Problem(self.tuned.name, "differs from the base in no linear weight that was asked for")
            )

    def _compare_one(self, tensor: TensorInfo, other: str | None, place: Place, writer: AdapterWriter) -> None:
        name = tensor.name
        if other is None:
            self.left[name] = "the tuned model has no such tensor"
            return
        if self.tuned.tensors[other].shape != tensor.shape:
            ours, theirs = list(tensor.shape), list(self.tuned.tensors[other].shape)
            self.left[name] = f"its shape is {ours} in the base and {theirs} in the tuned model"
            return
        base, tuned = _read(self.base, tensor), _read(self.tuned, self.tuned.tensors[other])
        if torch.equal(base, tuned):
            return
        if not place.linear:
            self.left[name] = "it is not the weight of a linear layer"
            self.replaced.setdefault(place.module, []).append(name)
        elif not fnmatch.fnmatchcase(name, self.wish.targets):
            self.left[name] = "it is not among the targets"
        else:
            self._factorise(tensor, tuned.sub_(base), place, writer)

    def _factorise(self, tensor: TensorInfo, delta: torch.Tensor, place: Place, writer: AdapterWriter) -> None:
        try:
            factors = factorise(delta.T if place.turned else delta, rank=self.wish.rank, energy=self.wish.energy)
        except ValueError as error:
            raise NonFiniteError(Problem(tensor.name, f"{error}, in the base or in the tuned model")) from error
        if factors is not None:
            writer.add_factors(place.module, factors)
            self.modules.append(Extracted(place.module, tensor.name, factors.rank, factors.energy))

    def _miss(self, pairs: Mapping[str, str], places: Places) -> None:
        """What the tuned model has besides, in layers and modules that both have and for the vocabulary. Parts of
        its own, such as a vision tower, are no difference."""
        met = set(pairs.values())
        modules = {name.rpartition(".")[0] for name in met}
        stacks = {place[0] for name in met if (place := split_layer(name))}
        vocabulary = vocabulary_tensors(self.tuned)
        for name, tensor in self.tuned.tensors.items():
            place = split_layer(name)
            shared = name.rpartition(".")[0] in modules or (place is not None and place[0] in stacks)
            if name in met or name.endswith("inv_freq"):
                continue
            if name in vocabulary and len(tensor.shape) == 2:
                tables = [self.tuned.tensors[one] for one in met & vocabulary]
                if not any(self._same(tensor, table) for table in tables if table.shape == tensor.shape):
                    tied = bool(places.copies) or ties_head(self.base.config) is True
                    self.left[name] = _TIED if tied else _ONLY_TUNED
                    self.untied = self.untied or tied
            elif shared:
                self.left[name] = _ONLY_TUNED

    def _same(self, one: TensorInfo, other: TensorInfo) -> bool:
        return torch.equal(_read(self.tuned, one), _read(self.tuned, other))

    # -- what a LoRA cannot hold ----------------------------------------------------------------

    def _is_tied_otherwise(self, name: str, places: Places) -> bool:
        """Whether a tensor is the base's head too and not the tuned model's, or nobody knows that head's name."""
        if places.copies.get(name):
            return self.untied
        alone = len(vocabulary_tensors(self.base)) == 1 and name in vocabulary_tensors(self.base)
        return alone and ties_head(self.base.config) is True

    def _save_modules(self, pairs: Mapping[str, str], places: Places, writer: AdapterWriter) -> None:
        """PEFT saves modules whole, and biases of linear layers on their own."""
        for module, names in self.replaced.items():
            members = [name for name, place in places.places.items() if place.module == module]
            inner = any(place.module.startswith(f"{module}.") for place in places.places.values())
            linear = any(places.places[name].linear for name in members)
            if any(self._is_tied_otherwise(name, places) for name in names):
                for name in names:
                    self.left[name] += f", and {_TIED}"
                continue
            if not module or inner:
                for name in names:
                    self.left[name] += ", and the module that has it has other parts"
                continue
            for name in names if linear else members:
                parameter = places.places[name].parameter
                wrapper = "base_layer." if module in writer.ranks else ""
                content = _read(self.tuned, self.tuned.tensors[pairs[name]], as_stored=True)
                writer.add_tensor(f"{module}.{wrapper}{parameter}", content)
                for copy in places.copies.get(name, ()):  # PEFT loads a tied head from a tensor of its own
                    writer.add_tensor(copy, content)
                    self.tied = True
                self.left.pop(name, None)
                self.saved.append(name)
            if not linear:
                self.whole.append(module)

    def _config(self, places: Places, writer: AdapterWriter) -> dict[str, Any]:
        tensors = {one.tensor for one in self.modules}
        biased = any(places.places[name].module not in self.whole for name in self.saved)
        on_hub = hub_name(self.base.name)  # a path of this machine means nothing elsewhere
        return {
            "base_model_name_or_path": on_hub,
            "revision": self.base.name.rpartition("@")[2] if on_hub else None,
            "task_type": "CAUSAL_LM" if _is_causal_lm(self.base) else None,
            "bias": "all" if biased else "none",
            "fan_in_fan_out": bool(tensors) and all(places.places[one].turned for one in tensors),
            "modules_to_save": self.whole or None,
            "ensure_weight_tying": self.tied,
        }

    def _report(self, notes: Sequence[str]) -> dict[str, Any]:
        modules = [asdict(one) for one in self.modules]
        return {"modules": modules, "saved": self.saved, "left": self.left, "notes": list(notes)}

    def _verify(self) -> None:
        self.tuned.verify_unchanged()
        self.base.verify_unchanged()


def _read(checkpoint: Checkpoint, tensor: TensorInfo, *, as_stored: bool = False) -> torch.Tensor:
    content = torch.empty(tensor.nbytes, dtype=torch.uint8)
    checkpoint.read_into(tensor, 0, content.numpy().data)
    stored = content.view(tensor.dtype.torch).view(tensor.shape)
    return stored if as_stored or not tensor.dtype.is_float else stored.float()


def _not_host(text: str) -> str:
    """A message about a merge into the tuned model, in words for an extraction."""
    return text.replace("the host's", "the tuned model's").replace("the host ", "the tuned model ")


def _is_causal_lm(base: Checkpoint) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    architectures = as_list(base.config.get("architectures")) or [""]
    return architectures[0] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _read_back(folder: StagedFolder) -> Extraction:
    """What the folder's manifest says: it was complete already."""
    report = json.loads((folder.out / MANIFEST).read_bytes())
    return _extraction(folder, report, folder.finished, before=True)


def _extraction(
    folder: StagedFolder, report: Mapping[str, Any], files: Mapping[str, FileDigest], *, before: bool
) -> Extraction:
    return Extraction(
        out=folder.out,
        digest=folder.digest,
        modules=tuple(Extracted(**one) for one in report["modules"]),
        saved=tuple(report["saved"]),
        left=dict(report["left"]),
        notes=tuple(report["notes"]),
        files=dict(files),
        complete_before=before,
    )
