"""What a method may offer beside `merge`: the same arithmetic in machine code, on numbers as they are stored.

A faster way to the same bits, taken where it can be; `MergeMethod.merge` says what they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safegraft.methods.contract import Context

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DeclinedError(Exception):
    """These numbers are for `MergeMethod.merge`: NaN or inf among them or in the result, or a case not covered."""


@dataclass(frozen=True, slots=True)
class StoredCut:
    """A flat cut of a tensor of every input, in one format: uint16 holds bfloat16's bits, int16 float16's; or float32.

    The arrays are the engine's scratch memory, as the tensors that `merge` gets.
    """

    inputs: "NDArray[Any]"  # [inputs, elements]; those with a role at the end
    base: "NDArray[Any] | None"  # [elements]
    parameters: Sequence[Any]  # of each input; None where it has a role


class StoredView(ABC):
    """A whole tensor of every input, for `prepare` to walk through in bounded memory."""

    shape: tuple[int, ...]
    context: Context

    @abstractmethod
    def blocks(self) -> Iterator[StoredCut]:
        """As TensorView.blocks: the same cuts."""


class Compiled(ABC):
    """`prepare` and `merge` of one method. Instances hold no state.

    The engine uses it on a CPU, for tensors whose rows all take part, whose dtypes are 16 or 32 bits wide, and that no
    modifier changes; for the others, and for each cut that is declined, it calls the method itself. Both may be at
    work on cuts of one tensor: `prepare` returns what the method's own does, and bits must not differ.
    """

    def prepare(self, view: StoredView, parameters: Any) -> Any:
        """What MergeMethod.prepare returns. Raises DeclinedError."""
        return None

    @abstractmethod
    def merge(self, cut: StoredCut, context: Context, out: "NDArray[Any]") -> None:
        """Merge one cut into `out` [elements], rounded to its format. Raises DeclinedError; `out` is lost then."""
