"""All of mergekit's methods through its own public interface, as `mergekit:linear`, `mergekit:ties` and so on.

Of arcee_fusion there is no version of our own, so it goes by its plain name too. mergekit is imported when the first
tensor is merged, never before: what must be known to list and plan is in mergekit_table.py.
"""

import contextlib
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, create_model

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod
from safegraft_plugins import mergekit_table as table

if TYPE_CHECKING:
    import torch

PLAIN = ("arcee_fusion",)  # under these names too

_global_generator = threading.Lock()


class MergekitMethod(MergeMethod):
    """mergekit's own function for one tensor, with mergekit's own roundings.

    The inputs are cast back, without loss, to the dtype that mergekit would compute in: the widest that is stored, or
    the recipe's `dtype`. So the result is bit-equal to what `mergekit-yaml` computes on one thread (its sums depend
    on the number of threads).

    Methods that draw random numbers get them from the tensor's seed, not from the state that earlier tensors left.
    They run one at a time and borrow torch's global generator: no other thread of the process may draw from it
    meanwhile. It is put back afterwards.
    """

    method: ClassVar[table.Method]
    packages = ("mergekit",)
    granularity = Granularity.TENSOR

    def check(self, inputs: Sequence[Any], parameters: Any) -> Iterator[str]:
        return self.method.check(inputs, parameters)

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        import torch
        from mergekit.merge_methods import (  # pyright: ignore[reportMissingTypeStubs] (it has none)
            TensorEntry,
            TensorGroup,
            TensorMetadata,
            get,
        )

        entries = [TensorEntry(index, one.tensor) for index, one in enumerate(inputs)]
        if base is not None:
            entries.append(TensorEntry("base", base, is_base=True))
        group = TensorGroup(tuple(entries), TensorMetadata(context.tensor, 0 if context.vocabulary else None))
        stored: torch.dtype = getattr(torch, context.stored)
        with _own_random_numbers(context.seed) if self.method.draws else contextlib.nullcontext():
            (result,) = get(self.method.name)((group,), parameters=_arguments(inputs, context), dtype=stored)
        return result.to(inputs[0].tensor.dtype)


def _arguments(inputs: Sequence[Input], context: Context) -> dict[str, Any]:
    """Parameters by mergekit's names; those of each input as a list in the inputs' order."""
    each: list[dict[str, Any]] = [one.parameters.model_dump(by_alias=True) for one in inputs]
    return context.parameters.model_dump(by_alias=True) | {name: [own[name] for own in each] for name in each[0]}


@contextlib.contextmanager
def _own_random_numbers(seed: int) -> Generator[None]:
    """torch's global generator on the CPU, for one caller at a time, seeded; left as it was found."""
    import torch

    with _global_generator, torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.default_generator.manual_seed(seed)
        yield


def adapter(row: table.Method, called: str) -> type[MergeMethod]:
    """The class that registers one of mergekit's methods under a name of ours."""

    class Adapter(MergekitMethod):
        method = row
        name = called
        summary = f"{row.summary[:-1]} (mergekit's code)."
        reference = row.reference
        requires = row.requires
        Parameters = _model(called, row.shared)
        InputParameters = _model(f"{called} of each model", row.each)

    Adapter.__name__ = Adapter.__qualname__ = called
    return Adapter


def _model(name: str, parameters: Mapping[str, table.Parameter]) -> type[BaseModel]:
    strict = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    fields: dict[str, Any] = dict(parameters)
    return create_model(name, __config__=strict, __module__=__name__, **fields)


CLASSES = [
    *(adapter(row, f"mergekit:{row.name}") for row in table.METHODS),
    *(adapter(row, row.name) for row in table.METHODS if row.name in PLAIN),
]


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return CLASSES
