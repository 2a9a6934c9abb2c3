"""A GPU against this processor: bytes a second of a merge, beside what the link and the card's memory carry.

    python -m bench.gpu [--size 1GB] [--device cuda] [--threads 4]

A merge reads and writes files whose bytes all cross the link, inputs one way and the result the other: the link, or
the file cache, is the ceiling, and not the card. Shares are of the bandwidths measured here: of the link's, the inputs'
bytes; of the card's memory's, inputs and result once each.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import safegraft
from bench.cases import METHODS
from bench.run import BUILD
from bench.sets import BASE, Sets
from bench.shapes import SIZES
from safegraft.engine.execute import usable

PROBE_BYTES = 1 << 30
METHOD_NAMES = ("linear", "slerp", "task_arithmetic", "ties", "dare_ties", "della", "sce")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Measure merges on a GPU.")
    parser.add_argument("--size", default="1GB", choices=SIZES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    try:
        usable(options.device)
    except safegraft.UsageError as error:
        print(f"nothing to measure: {error}", file=sys.stderr)
        return 1
    device = torch.device(options.device)
    link, memory = _link(device), _memory(device)
    print(f"{torch.cuda.get_device_name(device)}: link {link:.1f} GB/s, memory {memory:.0f} GB/s")
    sets = Sets(BUILD)
    folders = {name: str(sets.model(options.size, name)) for name in (BASE, "model-1", "model-2")}
    for name in METHOD_NAMES:
        recipe = _recipe(name, folders)
        read, written = _bytes_moved(recipe)
        figures: dict[str, float] = {}
        for place in ("cpu", options.device, "cpu", options.device):  # the second time counts: all is warm
            figures[place] = _seconds(recipe, place, options.threads)
        rates = {place: (read + written) / seconds / 1e9 for place, seconds in figures.items()}
        shares = {"link": read / figures[options.device] / 1e9 / link, "memory": rates[options.device] / memory}
        print(json.dumps({"method": name, "seconds": figures, "gb_a_second": rates, "share": shares}))
    return 0


def _recipe(name: str, folders: dict[str, str]) -> dict[str, Any]:
    method = METHODS[name]
    models = [{"model": folders[one], "parameters": dict(method.of_each)} for one in ("model-1", "model-2")]
    base = {"base_model": folders[BASE]} if method.needs_base else {}
    if name == "slerp":
        models, base = [{"model": folders["model-1"]}], {"base_model": folders["model-2"]}
    return {"merge_method": name, "models": models, "parameters": dict(method.parameters), **base}


def _bytes_moved(recipe: dict[str, Any]) -> tuple[int, int]:
    """Read and written."""
    plan = safegraft.plan(recipe)
    try:
        return plan.cost.bytes_read, plan.cost.bytes_written
    finally:
        plan.close()


def _seconds(recipe: dict[str, Any], device: str, threads: int) -> float:
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        began = time.monotonic()
        safegraft.merge(recipe, out=Path(folder) / "out", threads=threads, device=device)
        return time.monotonic() - began


def _link(device: torch.device) -> float:
    """From pinned memory to the device."""
    pinned = torch.empty(PROBE_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(PROBE_BYTES, dtype=torch.uint8, device=device)
    return PROBE_BYTES / _best(lambda: there.copy_(pinned, non_blocking=True), device) / 1e9


def _memory(device: torch.device) -> float:
    """Read and written."""
    one, other = (torch.empty(PROBE_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * PROBE_BYTES / _best(lambda: one.copy_(other), device) / 1e9


def _best(work: Callable[[], object], device: torch.device) -> float:
    def once() -> float:
        torch.cuda.synchronize(device)
        began = time.monotonic()
        work()
        torch.cuda.synchronize(device)
        return time.monotonic() - began

    return min(once() for _ in range(5))


if __name__ == "__main__":
    sys.exit(main())
