"""The formats of prompts that `--suite NAME=PATH` reads: one module a family.

format.py              what a format is
rows.py                typed columns of a row, with every fault told
own.py                 safegraft's own JSONL
text_safety.py         SORRY-Bench, AdvBench, HarmBench, WildJailbreak, StrongREJECT
multimodal_safety.py   MM-SafetyBench, SIUO, VLSafe, VLGuard, SPA-VL
figstep.py             FigStep, and its images rendered from any list
exaggerated_safety.py  XSTest, OR-Bench, MOSSBench
helpfulness.py         MMBench, MME, SEED-Bench, MMMU
bias.py                BBQ, CrowS-Pairs
"""

from collections.abc import Mapping

from safegraft_trainers.evaluate.formats import (
    bias,
    exaggerated_safety,
    figstep,
    helpfulness,
    multimodal_safety,
    own,
    text_safety,
)
from safegraft_trainers.evaluate.formats.format import Format

__all__ = ["FORMATS", "Format"]

_FAMILIES = (own, text_safety, multimodal_safety, figstep, exaggerated_safety, helpfulness, bias)

FORMATS: Mapping[str, Format] = {one.name: one for family in _FAMILIES for one in family.FORMATS}
