"""Makes the set of checkpoints that comes with the package from one seed of the lab.

    python -m safegraft_trainers.lab.export lab-output/seed-0

In bf16, as models are published: half the size, and what the demo and the tests start from. Trains nothing.
"""

# transformers types itself in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import shutil
import sys
from pathlib import Path
from typing import Any

from safegraft_trainers.lab.experiment import QUESTIONS
from safegraft_trainers.lab.stages import ADAPTED, ALIGNED, BASE, CHECKPOINTS, REPLAY, SFT, TOWER

SHIPPED = Path(__file__).parent / "checkpoints"
SIDECARS = ("chat_template.jinja", "processor_config.json", "preprocessor_config.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def export(seed: Path, out: Path = SHIPPED) -> None:
    """Replace the checkpoints and the test questions in `out`; its README stays."""
    for name in (BASE, TOWER, ALIGNED, ADAPTED, SFT, REPLAY):
        _export(seed / CHECKPOINTS / name, out / name)
    shutil.rmtree(out / QUESTIONS, ignore_errors=True)
    (out / QUESTIONS).mkdir()
    shutil.copyfile(seed / QUESTIONS / "test.jsonl", out / QUESTIONS / "test.jsonl")
    shutil.copytree(seed / QUESTIONS / "test-pictures", out / QUESTIONS / "test-pictures")


def _export(source: Path, out: Path) -> None:
    import torch
    import transformers

    auto: Any = transformers.AutoConfig
    kind: Any = getattr(transformers, auto.from_pretrained(source).architectures[0])
    shutil.rmtree(out, ignore_errors=True)
    model = kind.from_pretrained(source, dtype=torch.bfloat16)
    parts = [model.config, *(getattr(model.config, name, None) for name in ("text_config", "vision_config"))]
    for part in filter(None, parts):
        part.name_or_path = ""  # where it lay on this machine
    model.save_pretrained(out)
    for file in (*SIDECARS, *TOKENIZER):
        if (source / file).exists():
            shutil.copyfile(source / file, out / file)


if __name__ == "__main__":
    export(Path(sys.argv[1]))
