"""safetensors' dtypes: their sizes, and which of them can be merged, copied or neither."""

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class DType(enum.StrEnum):
    """The value is the spelling in a safetensors header."""

    BF16 = "BF16"
    F16 = "F16"
    F32 = "F32"
    F64 = "F64"
    BOOL = "BOOL"
    I8 = "I8"
    I16 = "I16"
    I32 = "I32"
    I64 = "I64"
    U8 = "U8"
    U16 = "U16"
    U32 = "U32"
    U64 = "U64"

    @property
    def itemsize(self) -> int:
        return _ITEMSIZE[self]

    @property
    def is_float(self) -> bool:
        return self in (DType.BF16, DType.F16, DType.F32, DType.F64)

    @property
    def torch(self) -> "torch.dtype":
        import torch

        return {
            DType.BF16: torch.bfloat16,
            DType.F16: torch.float16,
            DType.F32: torch.float32,
            DType.F64: torch.float64,
            DType.BOOL: torch.bool,
            DType.I8: torch.int8,
            DType.I16: torch.int16,
            DType.I32: torch.int32,
            DType.I64: torch.int64,
            DType.U8: torch.uint8,
            DType.U16: torch.uint16,
            DType.U32: torch.uint32,
            DType.U64: torch.uint64,
        }[self]


_ITEMSIZE = {
    DType.BF16: 2,
    DType.F16: 2,
    DType.F32: 4,
    DType.F64: 8,
    DType.BOOL: 1,
    DType.I8: 1,
    DType.I16: 2,
    DType.I32: 4,
    DType.I64: 8,
    DType.U8: 1,
    DType.U16: 2,
    DType.U32: 4,
    DType.U64: 8,
}

# The spellings that a recipe's `dtype` and a config's `dtype` use.
FLOAT_NAMES = {"bfloat16": DType.BF16, "float16": DType.F16, "float32": DType.F32, "float64": DType.F64}


def float_name(dtype: DType) -> str:
    """The spelling of a floating-point dtype that recipes use, which is torch's."""
    return _NAMES[dtype]


_NAMES = {dtype: name for name, dtype in FLOAT_NAMES.items()}
