"""Memory does not grow with the model: measured over whole processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from safegraft.testing import llama_config, llama_tensors, words, write_checkpoint

# VmHWM, not ru_maxrss: the latter starts at what the parent had.
MEASURE = """
import re, safegraft, sys
one, two, out = sys.argv[1:]
recipe = {"models": [{"model": one}, {"model": two}], "base_model": one, "merge_method": "slerp"}
safegraft.merge({**recipe, "parameters": {"t": 0.5}}, out=out, threads=2)
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def peak_megabytes(root: Path, layers: int) -> float:
    """Of a process that merges two models of 17 MB a layer."""
    pair = [
        write_checkpoint(
            root / f"{layers}-{seed}",
            llama_tensors(vocab=64, hidden=1024, layers=layers, seed=seed, dtype=torch.bfloat16),
            llama_config(vocab=64, hidden=1024, layers=layers, dtype="bfloat16"),
            tokens=words(64),
        )
        for seed in (1, 2)
    ]
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, pair), str(root / f"{layers}-out")],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout) / 1024


@pytest.mark.slow
def test_ten_times_the_model_takes_the_same_memory(tmp_path: Path) -> None:
    small, large = peak_megabytes(tmp_path, 2), peak_megabytes(tmp_path, 20)
    assert large < 500
    assert large < small + 40
