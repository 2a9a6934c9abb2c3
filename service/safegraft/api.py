"""The Python API: plan, merge, open. A thin face over the engine with everything at its defaults."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft.engine.plan import MAX_SHARD_SIZE, make_plan
from safegraft.engine.task import Plan
from safegraft.errors import UsageError
from safegraft.local import find_data, is_adapter_here, open_adapter, open_model
from safegraft.methods.registry import Registry
from safegraft.recipe.model import Recipe
from safegraft.sources import with_sources

if TYPE_CHECKING:
    from safegraft.engine.execute import MergedCheckpoint
    from safegraft.engine.folder import MergeResult, Progress

RecipeLike = Recipe | Path | str | Mapping[str, Any]


@functools.cache
def registry() -> Registry:
    """The merge methods installed here, found once."""
    return Registry.discover()


def plan(recipe: RecipeLike, *, max_shard_size: int = MAX_SHARD_SIZE, hub_cache: bool | None = None) -> Plan:
    """Say what a merge would do, from headers alone.

    Args:
        recipe: a Recipe, the path of a YAML file, YAML text, or a mapping.
        max_shard_size: bytes of tensors in one weight file.
        hub_cache: download models of the Hub whole into the Hugging Face cache, instead of reading the ranges of them
            that are needed. Default: as SAFEGRAFT_HUB_CACHE says, else no.

    Raises RecipeError and InputError, each with every problem found. Close the plan when done with it.
    """
    from safegraft.hub.card import render_card

    asked = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    return make_plan(
        asked,
        with_sources(functools.partial(open_model, cache=hub_cache), registry()),
        registry(),
        find_data=find_data,
        max_shard_size=max_shard_size,
        card=render_card,
    )


def is_adapter_recipe(recipe: Recipe) -> bool:
    """Whether every model of a recipe is an adapter on its own: then the result is one too."""
    return all(is_adapter_here(one) for one in recipe.references())


def merge(
    recipe: RecipeLike,
    *,
    out: Path | str,
    max_shard_size: int = MAX_SHARD_SIZE,
    threads: int | None = None,
    progress: "Callable[[Progress], None] | None" = None,
    cancelled: Callable[[], bool] | None = None,
    rank: int | None = None,
    device: str = "cpu",
    hub_cache: bool | None = None,
) -> "MergeResult":
    """Merge into the folder `out`, which appears when it is complete. A rerun continues.

    A recipe of adapters alone gives an adapter.

    Args:
        rank: of a merged adapter, the most that a module gets. Default: what the inputs have together.
        threads: compute threads; default: the cores this process may use. Changes no byte.
        progress: called after every block.
        cancelled: asked after every block; once true, MergeCancelledError is raised.
        device: "cpu", "cuda" or "cuda:N". A GPU's results may differ from a processor's in their last bit.
        hub_cache: see `plan`.

    Raises RecipeError, UsageError, InputError, OutputError, PluginError, MergeCancelledError.
    """
    from safegraft.engine.execute import never
    from safegraft.engine.folder import Progress, write_folder

    asked = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if is_adapter_recipe(asked):
        from safegraft.adapter.merge import merge_adapters

        if device != "cpu":
            raise UsageError("adapters alone are merged on the cpu")

        def show(done: int, total: int, tensor: str) -> None:
            if progress is not None:
                progress(Progress(tensor, done, total, 0, 0))

        return merge_adapters(
            asked,
            functools.partial(open_adapter, cache=hub_cache),
            registry(),
            Path(out),
            rank=rank,
            threads=threads,
            progress=show,
            cancelled=cancelled or never,
        ).result
    if rank is not None:
        raise UsageError("a rank is for recipes whose models are all adapters")
    planned = plan(asked, max_shard_size=max_shard_size, hub_cache=hub_cache)
    try:
        return write_folder(
            planned, Path(out), threads=threads, device=device, progress=progress, cancelled=cancelled or never
        )
    finally:
        planned.close()


def open(
    recipe: RecipeLike,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    threads: int | None = None,
    device: str = "cpu",
    hub_cache: bool | None = None,
) -> "MergedCheckpoint":
    """The merged checkpoint without writing it: `with safegraft.open(recipe) as merged: ...`

    `merged.files[name].read(start, stop)` gives bytes of its files, `merged.tensors` is a lazy mapping of
    names, as they are in the host's files, to tensors: what `from_pretrained(None, state_dict=...)` takes.
    Close it, or use it as a context manager: it holds the inputs' files open.
    """
    from safegraft.engine.execute import MergedCheckpoint

    planned = plan(recipe, max_shard_size=max_shard_size, hub_cache=hub_cache)
    try:
        return MergedCheckpoint(planned, threads=threads, device=device, owns_plan=True)
    except BaseException:
        planned.close()
        raise
