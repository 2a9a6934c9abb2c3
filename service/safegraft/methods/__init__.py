"""What a merge plugin implements, and the registry that finds plugins.

contract.py   MergeMethod: a plugin's whole contract
hookspecs.py  the hook through which a plugin registers
registry.py   discovery: one loop over entry points that survives a broken plugin
"""

from safegraft.methods.contract import (
    Calibration,
    Context,
    Granularity,
    Input,
    MergeMethod,
    Modifier,
    Prepared,
    Requirements,
    Statistic,
    TensorView,
)
from safegraft.methods.hookspecs import hookimpl
from safegraft.methods.registry import Plugin, Registry

__all__ = [
    "Calibration",
    "Context",
    "Granularity",
    "Input",
    "MergeMethod",
    "Modifier",
    "Plugin",
    "Prepared",
    "Registry",
    "Requirements",
    "Statistic",
    "TensorView",
    "hookimpl",
]
