"""A model and its processor ready to learn, and the choice of what in it learns.

Knows model structure (parts.py) and PEFT; nothing of data, losses or where results go.
"""

# transformers, PEFT and torch type what is used here in part, accelerate nothing.
# pyright: reportMissingTypeStubs=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safegraft.errors import CheckpointError, Problem, UsageError
from safegraft_trainers.training.arguments import BOTH, EVERYTHING, LANGUAGE, PROJECTOR
from safegraft_trainers.training.parts import Part, Parts, find_parts, is_multimodal

if TYPE_CHECKING:
    from safegraft_trainers.training.arguments import CommonArguments

_LEARNING: Mapping[str, frozenset[Part]] = {
    PROJECTOR: frozenset({Part.PROJECTOR}),
    LANGUAGE: frozenset({Part.LANGUAGE}),
    BOTH: frozenset({Part.LANGUAGE, Part.PROJECTOR}),
    EVERYTHING: frozenset(Part),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What learns. parts: where the model's parts are. peft_config: for the TRL trainer; None without LoRA.

    notes: what a user should know about the choice.
    """

    parts: Parts
    peft_config: Any | None
    notes: tuple[str, ...] = ()


def load_for_training(model_name: str | None, model_config: Any) -> tuple[Any, Any]:
    """The model and its processor (where it sees images) or tokenizer (text only).

    model_name: a folder or a Hub name. model_config: trl.ModelConfig (revision, dtype, attention, quantization).
    Raises CheckpointError when it does not load whole: transformers itself would only warn and fill in random numbers.
    """
    import transformers
    from accelerate import PartialState
    from trl.trainer.utils import get_quantization_config

    if model_name is None:
        raise UsageError("--model_name_or_path is needed: a folder or a Hub name")
    auto: Any = transformers.AutoConfig
    with explained(model_name):
        config = auto.from_pretrained(model_name, revision=model_config.model_revision, trust_remote_code=False)
    kind: Any = getattr(transformers, (config.architectures or ["?"])[0], None)
    if kind is None or not kind.can_generate():
        message = f"its config.json names {config.architectures}, which transformers cannot make answer"
        raise CheckpointError(Problem(model_name, message))
    quantization = get_quantization_config(model_config)
    with explained(model_name):
        # With quantization the weights go to this process's device at once; else the trainer places them.
        model, report = kind.from_pretrained(
            model_name,
            config=config,
            revision=model_config.model_revision,
            dtype=model_config.dtype,
            attn_implementation=model_config.attn_implementation,
            quantization_config=quantization,
            device_map={"": PartialState().local_process_index} if quantization else None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported with the rest instead of raised at the first
        )
    refuse_gaps(model_name, report)
    return model, load_front(model_name, config, revision=model_config.model_revision)


def load_front(model_name: str, config: Any, **where: Any) -> Any:
    """The processor or tokenizer that goes with a model's config, with a token to pad with."""
    import transformers

    from safegraft_trainers.processors import load_processor

    tokenizer_of: Any = transformers.AutoTokenizer
    with explained(model_name):
        if is_multimodal(config):
            front = load_processor(model_name, config, **where)
        else:
            front = tokenizer_of.from_pretrained(model_name, trust_remote_code=False, **where)
    tokenizer: Any = getattr(front, "tokenizer", front)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return front


def refuse_gaps(name: str, report: Mapping[str, Collection[Any]]) -> None:
    """Raise CheckpointError when transformers' loading report says that weights are missing or do not fit."""
    faults = {
        kind: sorted(map(str, report.get(kind) or ())) for kind in ("missing_keys", "mismatched_keys", "error_msgs")
    }
    listed = [f"{kind.replace('_', ' ')}: {', '.join(found)}" for kind, found in faults.items() if found]
    if listed:
        raise CheckpointError(Problem(name, "does not load whole: " + "; ".join(listed)))


def choose_parameters(model: Any, script: "CommonArguments", model_config: Any) -> Choice:
    """Freeze and thaw `model` by `script.train_parts`; with `model_config.use_peft`, a LoraConfig for the trainer.

    Text-only models have a language part alone. Raises UsageError for a family whose parts are not known, and for a
    choice that leaves nothing to learn.
    """
    named = {
        Part.LANGUAGE: script.language_modules,
        Part.PROJECTOR: script.projector_modules,
        Part.TOWER: script.tower_modules,
    }
    parts = find_parts(model, named)
    learning = _LEARNING[script.train_parts]
    if not any(part in learning for part in parts.of.values()):
        raise UsageError(f"--train_parts {script.train_parts}: this model has no such part, so nothing would learn")
    if (model_config.load_in_4bit or model_config.load_in_8bit) and not model_config.use_peft:
        raise UsageError(
            "quantized weights cannot learn: add --use_peft, or leave --load_in_4bit and --load_in_8bit away"
        )
    if model_config.use_peft:
        return _lora(model, parts, script, model_config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parts.of[name] in learning)
    return Choice(parts, None)


def _lora(model: Any, parts: Parts, script: "CommonArguments", model_config: Any) -> Choice:
    """LoRA on the language model's linear layers, and the projector as a whole beside it."""
    import peft

    if script.train_parts not in (LANGUAGE, BOTH):
        raise UsageError(f"--use_peft adapts the language model: --train_parts is {LANGUAGE} or {BOTH} then")
    projector = parts.modules.get(Part.PROJECTOR, ()) if script.train_parts == BOTH else ()
    modules = dict(model.named_modules())
    bare = [name for name in projector if name not in modules]
    notes = [f"{name} is a parameter of its own, which no adapter file can hold: it stays as it is" for name in bare]
    if any(weight.ndim > 2 for name, weight in model.named_parameters() if parts.of[name] is Part.LANGUAGE):
        notes.append("experts that share one tensor are no linear layers: they get no adapter and stay as they are")
    settings = peft.LoraConfig(
        r=model_config.lora_r,
        lora_alpha=model_config.lora_alpha,
        lora_dropout=model_config.lora_dropout,
        use_rslora=model_config.use_rslora,
        use_dora=model_config.use_dora,
        target_modules=lora_targets(model, parts, model_config.lora_target_modules),
        target_parameters=model_config.lora_target_parameters,
        modules_to_save=[*(name for name in projector if name in modules), *(model_config.lora_modules_to_save or ())]
        or None,
        task_type=model_config.lora_task_type,
        bias="none",
    )
    return Choice(parts, settings, tuple(notes))


def lora_targets(model: Any, parts: Parts, asked: str | Sequence[str] | None) -> str:
    """A pattern of all linear layers of the language model but its output head, and of nothing else.

    asked: layers by the last part of their name (q_proj, ...); "all-linear" and None mean all of them. PEFT itself
    takes such names wherever they occur, the vision tower and the projector included.
    """
    import torch

    head = model.get_output_embeddings()
    linear = [name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear) and one is not head]
    ours = [name for name in linear if parts.module_of(name)[0] is Part.LANGUAGE]
    layers = sorted({name.rpartition(".")[2] for name in ours})
    wanted = [asked] if isinstance(asked, str) else list(asked or ["all-linear"])
    if wanted != ["all-linear"]:
        if unknown := [name for name in wanted if name not in layers]:
            message = f"the language model has no linear layer {', '.join(unknown)}; it has {', '.join(layers)}"
            raise UsageError(Problem("--lora_target_modules", message))
        layers = wanted
    roots = sorted({parts.module_of(name)[1] for name in ours} - {""})
    prefix = f"({'|'.join(map(re.escape, roots))})\\." if roots else ""
    return rf"{prefix}(.*\.)?({'|'.join(map(re.escape, layers))})"


class explained:
    """What transformers raises while a stranger's files are read, as a CheckpointError."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, CheckpointError):
            message = f"transformers cannot load it: {type(error).__name__}: {error}"
            raise CheckpointError(Problem(self.name, message)) from error
