"""How functions are compiled: for this processor, at first use, without the interpreter's lock, kept for later runs.

What was compiled lies in $SAFEGRAFT_CACHE/machine_code, else ~/.cache/safegraft/machine_code, in a folder for each
state of the sources: numba itself looks at one file's time only, and not at what the file imports.
"""

# pyright: basic
# (numba has no type information)

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.extending import intrinsic

_SOURCES = Path(__file__).parent
_MORE_SOURCES = ("lanes.py", "random_bits.py")  # beside this package, whose constants are compiled in

# Division by zero gives inf, as in torch, and no bounds are checked: without these two loops become vector code.
_OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


def machine_code(function: Callable[..., object]) -> Any:
    """Compile for the argument types of each call. The order of floating-point operations is kept, nothing is fused."""
    settings: Any = config  # made from the environment when imported
    before = settings.CACHE_DIR
    settings.CACHE_DIR = _FOLDER  # read while the function is declared
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # a folder that cannot be written to: compiled anew in every process
        return numba.njit(**_OPTIONS)(function)
    finally:
        settings.CACHE_DIR = before


def instruction(function: Callable[..., object]) -> Any:
    """A function whose code is given in LLVM's terms: see numba.extending.intrinsic."""
    return intrinsic(function)


def _folder() -> str:
    sources = hashlib.sha256()
    for path in [*sorted(_SOURCES.glob("*.py")), *(_SOURCES.parent / name for name in _MORE_SOURCES)]:
        sources.update(path.read_bytes())
    root = os.environ.get("SAFEGRAFT_CACHE")
    cache = Path(root) if root else Path.home() / ".cache" / "safegraft"
    return str(cache / "machine_code" / sources.hexdigest()[:16])


_FOLDER = _folder()
