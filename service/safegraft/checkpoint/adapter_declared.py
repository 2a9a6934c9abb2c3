"""What an adapter's config names and its file or its base does not have."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from safegraft.checkpoint.adapter_settings import MAX_NAME_LENGTH, LoraSettings
from safegraft.checkpoint.findings import MAX_FINDINGS, listed
from safegraft.checkpoint.types import TensorInfo


def lacking(names: Sequence[str], tensors: Iterable[str]) -> list[str]:
    """The first of `names` that are the end of no module's name, as PEFT compares them. tensors: names in memory."""
    everything = "\n".join(tensors)
    absent: list[str] = []
    for name in names:
        if f"{name}." not in everything:
            absent.append(name)
        if len(absent) > MAX_FINDINGS:
            break
    return absent


def unadapted(settings: LoraSettings, modules: Iterable[str]) -> str | None:
    """A note about names in target_modules of which the adapter has no module."""
    found = _adapted(settings, modules)
    absent = [name for name in settings.targets if name not in found]
    if not absent:
        return None
    return f"target_modules in its config names {listed(absent)}, of which it has nothing"


def skipped(
    settings: LoraSettings, modules: Iterable[str], base: Mapping[str, TensorInfo], changed: Collection[str]
) -> str | None:
    """A note about modules that the adapter's config names and that it has for some layers of a stack only.

    modules: of the adapter. base: its tensors. changed: the names of those that the adapter changes.
    """
    if not settings.everywhere:
        return None
    known = _adapted(settings, modules)
    stacks = {stack for name in changed if (stack := _stack(name))}
    left = [
        name
        for name, tensor in base.items()
        if name not in changed
        and len(tensor.shape) == 2
        and _stack(name) in stacks
        and _names_of(name.removesuffix(".weight"), known)
    ]
    if not left:
        return None
    return f"target_modules in its config names {listed(left)} too, of which it has nothing"


def _adapted(settings: LoraSettings, modules: Iterable[str]) -> set[str]:
    """The names in target_modules that some module of the adapter goes by."""
    known = set(settings.targets)
    return {name for module in modules for name in _names_of(module, known)}


def _names_of(module: str, known: Collection[str]) -> list[str]:
    """What a module goes by, of what is known: its own name, and what stands behind a dot near its end."""
    tail = module[-MAX_NAME_LENGTH - 1 :]
    ends = (tail[at + 1 :] for at, sign in enumerate(tail) if sign == ".")
    return [name for name in (module, *ends) if name in known]


def _stack(name: str) -> str:
    """ "model.layers." of "model.layers.3.mlp.up_proj.weight"; "" of what is in no layer."""
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if index and part.isdecimal()), 0)
    return "".join(f"{part}." for part in parts[:number])
