"""The miniature's checkpoints, each made by the trainer that makes the like of it in earnest.

    base-llm                knows the world, answers everything          pretraining.py
    vision-tower            tells shapes and words apart                 pretraining.py
    aligned-llm             refuses what is harmful                      safety-sft, text alone
    projected-lvlm          the two joined, the projector trained        adapt, stage 1
    adapted-lvlm            sees, and has lost its safety                adapt, stage 2, on benign data alone
    safety-sft-lvlm         adapted-lvlm, taught to refuse               safety-sft
    safety-sft-replay-lvlm  ... with 3 benign rows to each refusal       safety-sft
    safety-dpo-lvlm         adapted-lvlm, preferring refusals            safety-dpo
    multitask-lvlm          adapted and tuned at once                    multitask
    unaligned-llm           aligned-llm, made harmful on purpose         for RESTA and Safety Arithmetic
    benign-llm              aligned-llm, tuned on benign text            control: is it adaptation, or any tuning?
    noise-llm               adapted-lvlm's language model and noise as   control: is it aligned weights, or any change?
                            large as its difference from aligned-llm's

A folder that is complete is not made again, so an interrupted run goes on. Knows no merge and no question.
"""

# torch types itself in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import contextlib
import importlib
import shutil
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from safegraft_trainers.lab.corpus import Sizes, write_corpus
from safegraft_trainers.lab.pretraining import Schedule
from safegraft_trainers.lab.world import World
from safegraft_trainers.training.provenance import RECORD

DATA, CHECKPOINTS, LOG = "data", "checkpoints", "training.log"
BASE, TOWER, ALIGNED, PROJECTED, ADAPTED = "base-llm", "vision-tower", "aligned-llm", "projected-lvlm", "adapted-lvlm"
SFT, REPLAY, DPO, MULTITASK = "safety-sft-lvlm", "safety-sft-replay-lvlm", "safety-dpo-lvlm", "multitask-lvlm"
UNALIGNED, BENIGN, NOISE = "unaligned-llm", "benign-llm", "noise-llm"
ALL = (BASE, TOWER, ALIGNED, PROJECTED, ADAPTED, SFT, REPLAY, DPO, MULTITASK, UNALIGNED, BENIGN, NOISE)

_MARK = ".complete"
SAVES = 4  # checkpoints along the way, the last included

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scale:
    """How long everything is trained; of what trainers make, in optimiser steps of 32 rows."""

    language: Schedule
    tower: Schedule
    sizes: Sizes
    alignment: int
    projector: int
    adaptation: int
    safety: int
    preferences: int


FULL = Scale(
    language=Schedule(1000, 64, 3e-3),
    tower=Schedule(1500, 64, 2e-3),
    sizes=Sizes(instructions=20000),
    alignment=400,
    projector=200,
    adaptation=1200,
    safety=240,
    preferences=160,
)
REDUCED = replace(
    FULL,
    sizes=Sizes(alignment=4000, pretraining=2000, instructions=10000, safety=1000, text=1000, preferences=0),
    projector=150,
    adaptation=800,
    safety=120,
)


class Stage(NamedTuple):
    """A checkpoint: the trainer's module and its arguments, as on a command line."""

    name: str
    trainer: str
    arguments: dict[str, Any]


def stages(data: Path, checkpoints: Path, scale: Scale) -> list[Stage]:
    """All that trainers make, in an order in which each finds what it needs."""

    def at(name: str) -> str:
        return str(checkpoints / name)

    def file(name: str) -> str:
        return str(data / name)

    safety = {"safety_data": file("safety.json"), "safety_images": str(data), "refusal_data": file("refusals.jsonl")}
    llava = {"data": file("instructions.json"), "image_folder": str(data)}
    language = {"train_parts": "language", "save_strategy": "no"}
    early = {"save_strategy": "steps"}
    return [
        Stage(
            ALIGNED,
            "safety_sft",
            {"model_name_or_path": at(BASE), "refusal_data": file("alignment.jsonl"), "learning_rate": 4e-4}
            | language
            | {"max_steps": scale.alignment},
        ),
        Stage(
            PROJECTED,
            "adapt",
            {"stage": 1, "language_model": at(ALIGNED), "vision_model": at(TOWER), "vision_feature_layer": -1}
            | {"data": file("pretraining.json"), "image_folder": str(data), "learning_rate": 5e-3}
            | {"max_steps": scale.projector, "save_strategy": "no"},
        ),
        Stage(
            ADAPTED,
            "adapt",
            {"stage": 2, "model_name_or_path": at(PROJECTED), **llava, "learning_rate": 5e-4}
            | {"max_steps": scale.adaptation, **early},
        ),
        Stage(
            SFT,
            "safety_sft",
            {"model_name_or_path": at(ADAPTED), **safety, "learning_rate": 2e-4, "max_steps": scale.safety, **early},
        ),
        Stage(
            REPLAY,
            "safety_sft",
            {"model_name_or_path": at(ADAPTED), **safety, "learning_rate": 2e-4, "max_steps": scale.safety, **early}
            | {"benign_data": llava["data"], "benign_images": str(data), "benign_replay": 0.75},
        ),
        Stage(
            DPO,
            "safety_dpo",
            {"model_name_or_path": at(ADAPTED), "preference_data": file("preferences.jsonl")}
            | {"preference_images": str(data), "learning_rate": 1e-4, "max_steps": scale.preferences, **early},
        ),
        Stage(
            MULTITASK,
            "multitask",
            {"model_name_or_path": at(PROJECTED), "adaptation_data": llava["data"], "adaptation_images": str(data)}
            | {**safety, "safety_share": 0.1, "learning_rate": 5e-4, "max_steps": scale.adaptation, **early},
        ),
        Stage(
            UNALIGNED,
            "safety_sft",
            {"model_name_or_path": at(ALIGNED), "borderline_data": file("harmful.jsonl"), "learning_rate": 4e-4}
            | language
            | {"max_steps": scale.safety // 2},
        ),
        Stage(
            BENIGN,
            "safety_sft",
            {"model_name_or_path": at(ALIGNED), "borderline_data": file("benign.jsonl"), "learning_rate": 5e-4}
            | language
            | {"max_steps": scale.adaptation},
        ),
    ]


def make(folder: Path, seed: int, scale: Scale, report: Report, *, only: Sequence[str] = ALL) -> World:
    """Make what is in `only`, in `folder`: its data, and its checkpoints one after another. Returns the world.

    What the trainers print goes to `folder`/training.log. Raises what they raise.
    """
    world = World(seed)
    data, checkpoints = folder / DATA, folder / CHECKPOINTS
    if not data.exists():
        report("writing the world's data")
        draft = folder / f".{DATA}"
        shutil.rmtree(draft, ignore_errors=True)
        write_corpus(world, draft, scale.sizes, seed)
        draft.rename(data)
    with _one_thread():
        _pretrain(world, checkpoints, seed, scale, report, only)
        for stage in stages(data, checkpoints, scale):
            if stage.name in only and not is_complete(checkpoints / stage.name):
                report(f"training {stage.name}")
                _train(stage, checkpoints / stage.name, seed, folder / LOG)
        if NOISE in only and not is_complete(checkpoints / NOISE):
            _perturb(checkpoints, seed)
    return world


def is_complete(checkpoint: Path) -> bool:
    """Every trainer writes its record last; what is made without one is marked."""
    return any((checkpoint / file).exists() for file in (RECORD, _MARK))


def mark_complete(checkpoint: Path) -> None:
    """So that it is not made again."""
    (checkpoint / _MARK).touch()


def early(checkpoints: Path, name: str, quarter: int) -> Path:
    """The checkpoint that a training left when it had done so many quarters of its steps."""
    saved = sorted((checkpoints / name).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return saved[quarter - 1]


def _pretrain(world: World, checkpoints: Path, seed: int, scale: Scale, report: Report, only: Sequence[str]) -> None:
    from safegraft_trainers.lab import pretraining

    if BASE in only and not is_complete(checkpoints / BASE):
        report(f"training {BASE} from nothing")
        tokenizer = pretraining.make_tokenizer(world)
        model = pretraining.train_language_model(world, tokenizer, scale.language, seed)
        _write(checkpoints / BASE, model, tokenizer)
    if TOWER in only and not is_complete(checkpoints / TOWER):
        report(f"training {TOWER} from nothing")
        _write(checkpoints / TOWER, *pretraining.train_vision_tower(world, scale.tower, seed))


def _write(folder: Path, *parts: Any) -> None:
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    for part in parts:
        part.save_pretrained(draft)
    mark_complete(draft)
    draft.rename(folder)


def _train(stage: Stage, out: Path, seed: int, log: Path) -> None:
    """Through the trainer's own parser: what is written here is what a user would type."""
    import transformers

    shutil.rmtree(out, ignore_errors=True)  # of an earlier run that did not get to the end
    arguments = {
        "output_dir": str(out),
        "per_device_train_batch_size": 32,
        "save_steps": 1 / SAVES,
        "save_only_model": True,
        "seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 50,
        "dataloader_pin_memory": False,
        **stage.arguments,
    }
    written = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    trainer = importlib.import_module(f"safegraft_trainers.{stage.trainer}")
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        print(f"\n$ safegraft train {stage.trainer.replace('_', '-')} {' '.join(written)}", flush=True)
        transformers.utils.logging.disable_progress_bar()
        trainer.main(*trainer.parse(written))


def _perturb(checkpoints: Path, seed: int) -> None:
    """Noise in each tensor of the adapted language model, of the length of its way from the aligned one."""
    import torch

    from safegraft_trainers.loading import load

    generator = torch.Generator().manual_seed(seed)
    llm, lvlm = load(str(checkpoints / ALIGNED)), load(str(checkpoints / ADAPTED))
    adapted = dict(lvlm.model.model.language_model.named_parameters(prefix="model"))
    adapted["lm_head.weight"] = lvlm.model.lm_head.weight
    with torch.no_grad():
        for name, aligned in llm.model.named_parameters():
            here = adapted[name][: len(aligned)]  # an LVLM's vocabulary has rows of its own at the end
            noise = torch.randn(here.shape, generator=generator)
            aligned.copy_(here + noise * ((aligned - here).norm() / noise.norm()))
    _write(checkpoints / NOISE, llm.model, llm.front)


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    """In models this small threads only wait for one another; on a busy machine, thirty times as long."""
    import torch

    assert threading.current_thread() is threading.main_thread()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
