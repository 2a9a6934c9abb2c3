"""What a merge plugin implements, and the registry that finds plugins.

contract.py    MergeMethod: a plugin's whole contract
compiled.py    the same arithmetic in machine code, for those who offer it
extensions.py  what else a plugin may bring
hookspecs.py   the hooks through which a plugin registers
registry.py    discovery: one loop over entry points that survives a broken plugin
"""

from safegraft.methods.compiled import Compiled, DeclinedError, StoredCut, StoredView
from safegraft.methods.contract import (
    Calibration,
    Context,
    Granularity,
    Input,
    MergeMethod,
    Modifier,
    NoParameters,
    Prepared,
    Requirements,
    Statistic,
    TensorView,
)
from safegraft.methods.extensions import CheckpointSource, Publisher, TensorMap
from safegraft.methods.hookspecs import hookimpl
from safegraft.methods.registry import Plugin, Registry

__all__ = [
    "Calibration",
    "CheckpointSource",
    "Compiled",
    "Context",
    "DeclinedError",
    "Granularity",
    "Input",
    "MergeMethod",
    "Modifier",
    "NoParameters",
    "Plugin",
    "Prepared",
    "Publisher",
    "Registry",
    "Requirements",
    "Statistic",
    "StoredCut",
    "StoredView",
    "TensorMap",
    "TensorView",
    "hookimpl",
]
