"""A pair of models with random weights and 500 times the miniature's size: for timing a merge.

    python -m safegraft_trainers.lab.bulk DIR

They have the miniature models' classes and tokenizer, and a wider and deeper language model. They
answer nothing sensible.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from safegraft_trainers.lab.probes import CHECKPOINTS

LLM, LVLM = "bulk-llm", "bulk-lvlm"
TEXT_CONFIG = {  # of 100 million parameters, in place of the miniature's 0.2 million
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 14,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
}


def write_pair(folder: Path) -> None:
    """Write `folder`/bulk-llm and `folder`/bulk-lvlm, 200 MB of bf16 each."""
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType] (torch leaves the seed untyped)
    auto_llm: Any = transformers.AutoModelForCausalLM
    auto_lvlm: Any = transformers.AutoModelForImageTextToText
    auto_config: Any = transformers.AutoConfig
    for name, template, auto_model in ((LLM, "aligned-llm", auto_llm), (LVLM, "adapted-lvlm", auto_lvlm)):
        small = CHECKPOINTS / template
        config = auto_config.from_pretrained(small)
        config.get_text_config().update(TEXT_CONFIG)
        auto_model.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / name)
        for file in small.iterdir():
            if not (folder / name / file.name).exists():
                shutil.copyfile(file, folder / name / file.name)


if __name__ == "__main__":
    write_pair(Path(sys.argv[1]))
