"""Several adapters merged into one, by any merge method.

Each adapter is a virtual checkpoint of what it adds: a matrix scale B A for each module, zeros for modules that only
others have. The engine merges those like any weights, over a base of zeros; the result's matrices get their best
factors. So `linear` is linear in what the adapters add, which mixing the A's and the B's apart is not.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from safegraft.adapter.folder import AdapterWriter
from safegraft.adapter.low_rank import factorise
from safegraft.checkpoint.adapter import Adapter
from safegraft.checkpoint.adapter_declared import unadapted
from safegraft.checkpoint.adapter_modules import LoraModule
from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.findings import listed
from safegraft.checkpoint.lora_tiles import LoraTiles, LowRank, require_finite
from safegraft.checkpoint.types import Checkpoint, Identity, TensorInfo
from safegraft.checkpoint.weights import natural_order
from safegraft.engine.execute import MergedCheckpoint
from safegraft.engine.folder import MergeResult
from safegraft.engine.identity import identities
from safegraft.engine.plan import make_plan
from safegraft.engine.staging import MANIFEST, StagedFolder
from safegraft.engine.task import Plan
from safegraft.errors import (
    AlignmentError,
    CheckpointError,
    InputError,
    MergeCancelledError,
    Problem,
    RecipeError,
    UsageError,
)
from safegraft.methods.registry import Registry
from safegraft.recipe.canonical_form import canonical
from safegraft.recipe.model import Recipe

FORMAT = 1  # raised whenever the same inputs give other bytes
ZEROS = "no adapter"  # the base of methods that need one; no folder's name, since it is looked up nowhere
PIECE = 1 << 17  # elements computed at a time
_WHOLE = (
    "brings whole tensors, such as {}, and not only B A: merge MODEL+ADAPTER. If it trained none of them whole, PEFT "
    "saved them because embedding or head are among its targets or were resized; save it again without them "
    "(`save_pretrained(..., save_embedding_layers=False)`)"
)


@dataclass(frozen=True, slots=True)
class AdapterMerge:
    """result: as of any merge. notes: what a reader should know, such as what a lower rank has lost."""

    result: MergeResult
    notes: tuple[str, ...]


def merge_adapters(
    recipe: Recipe,
    open_adapter: Callable[[str], Adapter],
    registry: Registry,
    out: Path,
    *,
    rank: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, tensor: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> AdapterMerge:
    """Merge a recipe whose models are all adapters into the adapter folder `out`.

    rank: the most a module gets. By default what its inputs have together, which loses nothing with `linear`.
    progress: bytes done, bytes in all, tensor.

    Raises RecipeError, InputError, OutputError, PluginError, MergeCancelledError.
    """
    if rank is not None and rank < 1:
        raise UsageError(f"a rank must be at least 1, not {rank}")
    _require_float32(recipe)
    began = time.monotonic()
    with ExitStack() as opened:
        adapters: dict[str, Adapter] = {}
        problems: list[Problem] = []
        for reference in recipe.references():
            try:
                adapters[reference] = open_adapter(reference)
            except InputError as error:
                problems += error.problems
            else:
                opened.callback(adapters[reference].close)
        if problems:
            raise CheckpointError(problems)
        merger = _Merger(recipe, adapters, registry, rank)
        opened.callback(merger.plan.close)
        return merger.run(out, threads, progress, cancelled, began)


class _Merger:
    def __init__(self, recipe: Recipe, adapters: Mapping[str, Adapter], registry: Registry, rank: int | None) -> None:
        self.recipe, self.adapters, self.rank = recipe, adapters, rank
        _require_plain(adapters)
        self.modules = _union(adapters)
        plain = recipe if recipe.base_model or not _needs_base(recipe, registry) else replace(recipe, base_model=ZEROS)
        self.plan: Plan = make_plan(plain, self._virtual, registry)

    def run(
        self,
        out: Path,
        threads: int | None,
        progress: Callable[[int, int, str], None],
        cancelled: Callable[[], bool],
        began: float,
    ) -> AdapterMerge:
        sampled = [one for one in self.adapters.values() if one.identity.scheme == "sampled-sha256"]
        newer_than = max((one.modified_ns() for one in sampled), default=0)
        with StagedFolder(out, self._digest(), newer_than=newer_than) as folder:
            before = folder.complete
            files = dict(folder.finished)
            if before:
                known = json.loads((folder.out / MANIFEST).read_bytes())["modules"]
                energies = {one["module"]: one["energy"] for one in known}
            else:
                try:
                    with (
                        AdapterWriter(folder.partial / "data") as writer,
                        MergedCheckpoint(self.plan, threads=threads) as merged,
                    ):
                        energies = self._factorise(merged, writer, progress, cancelled)
                        files = writer.write(folder, self._config(), self._manifest(writer, energies), self._verify)
                except BaseException:
                    folder.discard()  # there is nothing in it that a rerun could continue
                    raise
        written = 0 if before else sum(one.size for one in files.values())
        result = MergeResult(folder.out, folder.digest, files, time.monotonic() - began, written, before)
        return AdapterMerge(result, (*self.plan.warnings, *_doubts(self.adapters), *_losses(energies)))

    def _virtual(self, reference: str) -> "AdapterDeltas":
        return AdapterDeltas(self.adapters.get(reference), self.modules)

    def _factorise(
        self,
        merged: MergedCheckpoint,
        writer: AdapterWriter,
        progress: Callable[[int, int, str], None],
        cancelled: Callable[[], bool],
    ) -> dict[str, float]:
        """Module -> the share of the merged matrix that its factors hold."""
        energies: dict[str, float] = {}
        done, total = 0, sum(task.nbytes for task in self.plan.tensors)
        for name, module in self.modules.items():
            if cancelled():
                raise MergeCancelledError("stopped; nothing was kept")
            progress(done, total, name)
            delta = merged.tensors[f"{name}.weight"].float()
            together = sum(
                one.content.modules[name].rank for one in self.adapters.values() if name in one.content.modules
            )
            factors = factorise(delta, rank=self.rank or together)
            if factors is not None:
                writer.add_factors(name, factors, embedding=module.embedding)
                energies[name] = factors.energy
            done += delta.nbytes
        progress(total, total, "")
        if not energies:
            raise AlignmentError("the merged adapter would change nothing: everything in it is zero")
        return energies

    def _config(self) -> dict[str, Any]:
        configs = [one.config for one in self.adapters.values()]

        def shared(key: str) -> Any:
            values = [config.get(key) for config in configs]
            return values[0] if all(value == values[0] for value in values) else None

        bases = {one.base_name for one in self.adapters.values()}
        return {
            "base_model_name_or_path": bases.pop() if len(bases) == 1 else None,
            "task_type": shared("task_type"),
            "fan_in_fan_out": shared("fan_in_fan_out") or False,
        }

    def _manifest(self, writer: AdapterWriter, energies: Mapping[str, float]) -> dict[str, Any]:
        names, checkpoints = self.plan.names, self.plan.checkpoints
        return {
            "recipe": canonical(self.recipe, names),
            "inputs": identities(names, checkpoints),
            "versions": dict(self.plan.versions),
            "modules": [
                {"module": name, "rank": writer.ranks[name], "energy": energy} for name, energy in energies.items()
            ],
        }

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps([FORMAT, self.plan.digest, self.rank]).encode()).hexdigest()

    def _verify(self) -> None:
        for adapter in self.adapters.values():
            adapter.verify_unchanged()


class AdapterDeltas(Checkpoint):
    """What an adapter adds, as float32 tensors [out, in] of every module in `modules`; zeros where it has none.

    adapter: None adds nothing at all. It stays open when this is closed.
    """

    def __init__(self, adapter: Adapter | None, modules: Mapping[str, LoraModule]) -> None:
        self._adapter = adapter
        self.name = adapter.name if adapter else ZEROS
        self.identity = adapter.identity if adapter else Identity(ZEROS, "sha256", hashlib.sha256(b"").hexdigest())
        self.config = {}
        self.sidecars = {}
        self.tensors = {
            f"{name}.weight": TensorInfo(f"{name}.weight", DType.F32, (module.outputs, module.inputs), "", 0)
            for name, module in modules.items()
        }
        self._tiles = LoraTiles(lambda info, start, stop: torch.zeros(stop - start), self._whole)

    def read_into(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        if start < 0 or start + buffer.nbytes > tensor.nbytes:
            raise ValueError(f"{tensor.name} has {tensor.nbytes} bytes: {buffer.nbytes} from {start} are out of range")
        module = self._adapter.content.modules.get(tensor.name.removesuffix(".weight")) if self._adapter else None
        target, itemsize = buffer.cast("B"), tensor.dtype.itemsize
        if module is None:
            target[:] = bytes(len(target))
            return
        while target:
            first = start // itemsize
            last = min(-(-(start + len(target)) // itemsize), first + PIECE)
            values = self._tiles.values(LowRank(tensor, module, turned=False), first, last)
            require_finite(values, lambda values=values: torch.zeros_like(values), tensor, self.name)
            begin = start - first * itemsize
            piece = values.view(torch.uint8).numpy().data[begin : begin + len(target)]
            target[: len(piece)] = piece
            target, start = target[len(piece) :], start + len(piece)

    def _whole(self, tensor: TensorInfo) -> torch.Tensor:
        assert self._adapter is not None  # only a module of its own is asked for
        content = torch.empty(tensor.nbytes, dtype=torch.uint8)
        self._adapter.read_into(tensor, 0, content.numpy().data)
        return content.view(tensor.dtype.torch).view(tensor.shape)

    def tokens(self) -> Mapping[str, int] | None:
        return None

    def modified_ns(self) -> int:
        return self._adapter.modified_ns() if self._adapter else 0

    def verify_unchanged(self) -> None:
        if self._adapter:
            self._adapter.verify_unchanged()


def _needs_base(recipe: Recipe, registry: Registry) -> bool:
    names = [recipe.merge_method, *(one.method for one in recipe.overrides if one.method)]
    methods = [method for name in names if (method := registry.get(name)) is not None]
    return any(method.requires.base == "required" for method in methods)


def _require_float32(recipe: Recipe) -> None:
    """What adapters add is merged in float32, and so are the factors that come of it."""
    asked = [key for key, value in (("dtype", recipe.dtype), ("out_dtype", recipe.out_dtype)) if value]
    message = "has no meaning where all models are adapters: those are merged and written in float32. Leave it away"
    if asked:
        raise RecipeError([Problem(recipe.where(key), message) for key in asked])


def _require_plain(adapters: Mapping[str, Adapter]) -> None:
    """Only what B A says can be merged without the model that an adapter belongs to."""
    problems: list[Problem] = []
    for reference, adapter in adapters.items():
        if adapter.settings.dora:
            problems.append(Problem(reference, "uses DoRA, whose effect depends on its model: merge MODEL+ADAPTER"))
        if adapter.settings.bias:
            problems.append(Problem(reference, "has biases of its own (lora_bias): merge MODEL+ADAPTER"))
        if adapter.content.replaced:
            problems.append(Problem(reference, _WHOLE.format(listed(adapter.content.replaced, 1))))
    if len({adapter.settings.turned for adapter in adapters.values()}) > 1:
        problems.append(Problem("", "the adapters differ in fan_in_fan_out: they are not for one model"))
    if problems:
        raise CheckpointError(problems)


def _union(adapters: Mapping[str, Adapter]) -> dict[str, LoraModule]:
    """Every module that some adapter has, in natural order; all must agree on its size."""
    modules: dict[str, LoraModule] = {}
    problems: list[Problem] = []
    for reference, adapter in adapters.items():
        for name, module in adapter.content.modules.items():
            first = modules.setdefault(name, module)
            if _kind(first) != _kind(module):
                sizes = f"[{module.outputs}, {module.inputs}] here and [{first.outputs}, {first.inputs}] in another"
                problems.append(Problem(reference, f"{name} is {sizes}: the adapters are not for one model"))
    if problems:
        raise AlignmentError(problems)
    return {name: modules[name] for name in sorted(modules, key=natural_order)}


def _kind(module: LoraModule) -> tuple[int, int, bool]:
    return module.outputs, module.inputs, module.embedding


def _doubts(adapters: Mapping[str, Adapter]) -> Sequence[str]:
    """What speaks against the adapters being for one model, and what they seem to lack."""
    lacks = {name: unadapted(one.settings, one.content.modules) for name, one in adapters.items()}
    doubts = [f"{name}: {text}" for name, text in lacks.items() if text]
    bases = {one.base_name.casefold(): one.base_name for one in adapters.values() if one.base_name}
    if len(bases) > 1:
        doubts.append(f"the adapters name different models that they were trained on: {', '.join(bases.values())}")
    return doubts


def _losses(energies: Mapping[str, float]) -> Sequence[str]:
    """What the ranks have cost, where that is more than rounding."""
    lossy = {name: energy for name, energy in energies.items() if energy < 1 - 1e-6}
    if not lossy:
        return []
    worst = min(lossy, key=lambda name: lossy[name])
    counts = f"{len(lossy)} of {len(energies)} modules need a higher rank to be held exactly"
    return [f"{counts}; the least energy kept is {lossy[worst]:.4f}, in {worst}"]
