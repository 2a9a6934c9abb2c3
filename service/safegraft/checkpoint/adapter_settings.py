"""adapter_config.json: what a LoRA's factors are scaled by, and which adapters cannot be added to weights at all."""

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from safegraft.checkpoint.findings import Findings, shown
from safegraft.checkpoint.strict_json import as_list, as_object, is_natural

MAX_RANK = 1_000_000
MAX_PATTERNS = 2_000  # each module is held against each of them
MAX_TARGETS = 200_000  # a name for each expert of each layer
MAX_PATTERN_LENGTH = 512
MAX_NAME_LENGTH = 512
MAX_REPEATS = 2  # unbounded repeats in one pattern: with more, matching a long name takes longer than anybody waits

# Settings that change how an adapter is trained or stored, not what it adds to the weights.
_HARMLESS = {
    "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode",
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "bias",
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "lora_dropout",
    "init_lora_weights", "ensure_weight_tying", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_config", "megatron_core", "runtime_config", "qalora_group_size", "velora_config",
}  # fmt: skip
_FLAGS = ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "ensure_weight_tying")
# Heads that PEFT adds to modules_to_save for these tasks; a model has one of them at most.
_TASK_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
_REFUSED = {
    "target_parameters": "it adapts stacked parameters (experts) as a whole",
    "layer_replication": "it repeats layers of its base",
    "trainable_token_indices": "it trains single rows of the embedding",
    "use_qalora": "its factors stand for groups of input columns",
    "use_bdlora": "its factors are block-diagonal",
    "alora_invocation_tokens": "it works only behind its invocation tokens, so no fixed weights stand for it",
    "arrow_config": "it chooses between adapters for each token, so no fixed weights stand for it",
    "monteclora_config": "it draws its weights at random",
    "kasa_config": "it changes its base by a singular value decomposition",
}
# These change the base when the adapter is made; the factors alone do not say how. Others ("gaussian", "eva",
# "orthogonal") leave it alone.
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga", "mica")
_RANK = f"an integer from 1 up to {MAX_RANK:,}"
_LARGEST = sys.float_info.max
_MERGE_WITH_PEFT = "merge it with PEFT (`merge_and_unload`, then `save_pretrained`) and use that model"


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What the adapter's config says of its factors. Patterns: in the file's order, the first that matches counts."""

    rank: int
    alpha: float
    rank_patterns: tuple[tuple[re.Pattern[str], int], ...]
    alpha_patterns: tuple[tuple[re.Pattern[str], float], ...]
    rank_stabilised: bool
    dora: bool
    bias: bool
    turned: bool  # weights are stored [in, out]
    tied: bool  # a tied head was trained with its embedding
    saved: tuple[str, ...]  # modules that it must bring whole: names, or what they end in
    targets: tuple[str, ...]  # modules that it adapts, in the same way; empty where a pattern says which
    everywhere: bool  # those in every layer

    def rank_of(self, module: str) -> int:
        """The rank that a module's factors must have."""
        return next((rank for pattern, rank in self.rank_patterns if pattern.fullmatch(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """What a module's B A is multiplied by."""
        alpha = next((alpha for pattern, alpha in self.alpha_patterns if pattern.fullmatch(module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank


def read_settings(config: Mapping[str, Any], where: str) -> LoraSettings:
    """Read a LoRA's config. Raises CheckpointError with all that is wrong with it, or cannot be added to weights."""
    findings = Findings(where)
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        kind = shown(peft_type) if isinstance(peft_type, str) else "no PEFT type"
        findings.add(f"is of {kind}; only LORA adapters can be added to weights. Otherwise {_MERGE_WITH_PEFT}")
        findings.raise_if_any()
    _refuse(config, findings)
    rank = config.get("r", 8)
    if not _is_rank(rank):
        findings.add(f"r must be {_RANK}")
    alpha = config.get("lora_alpha", 8)
    if not _is_number(alpha):
        findings.add("lora_alpha must be a finite number")
    flags = {key: config.get(key) or False for key in _FLAGS}
    for key, value in flags.items():
        if not isinstance(value, bool):
            findings.add(f"{key} must be true or false")
    rank_patterns = _patterns(config, "rank_pattern", _is_rank, _RANK, findings)
    alpha_patterns = _patterns(config, "alpha_pattern", _is_number, "a finite number", findings)
    if config.get("bias") not in (None, "none", "all", "lora_only"):
        findings.add("bias must be none, all or lora_only")
    saved = _names(config, "modules_to_save", MAX_PATTERNS, findings)
    by_pattern = isinstance(config.get("target_modules"), str)
    targets = () if by_pattern else _names(config, "target_modules", MAX_TARGETS, findings)
    findings.raise_if_any()
    task = config.get("task_type")
    own_heads = _TASK_HEADS.get(task, ()) if isinstance(task, str) else ()
    return LoraSettings(
        rank=rank,
        alpha=float(alpha),
        rank_patterns=tuple(rank_patterns),
        alpha_patterns=tuple((pattern, float(value)) for pattern, value in alpha_patterns),
        rank_stabilised=flags["use_rslora"],
        dora=flags["use_dora"],
        bias=flags["lora_bias"],
        turned=flags["fan_in_fan_out"],
        tied=flags["ensure_weight_tying"],
        saved=tuple(name for name in saved if name not in own_heads),
        targets=targets,
        everywhere=not config.get("layers_to_transform") and not config.get("exclude_modules"),
    )


def _refuse(config: Mapping[str, Any], findings: Findings) -> None:
    for key, value in config.items():
        if not value or key in _HARMLESS:
            continue
        if key in _REFUSED:
            findings.add(f"sets {key}: {_REFUSED[key]}. If PEFT can merge it, {_MERGE_WITH_PEFT}")
        else:
            findings.add(f"sets {shown(key)}, which is not known here and may change what the adapter means")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        findings.add(
            f"has init_lora_weights {shown(start)}: such an adapter belongs to a changed base. Convert it when saving "
            "(`save_pretrained(..., path_initial_model_for_weight_conversion=...)`)"
        )


def _names(config: Mapping[str, Any], key: str, most: int, findings: Findings) -> tuple[str, ...]:
    names = as_list(config.get(key) or [])
    if names is None or len(names) > most or not all(_is_name(name) for name in names):
        findings.add(f"{key} must be a list of at most {most:,} names of at most {MAX_NAME_LENGTH} characters")
        return ()
    return tuple(dict.fromkeys(names))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH


def _patterns(
    config: Mapping[str, Any], key: str, is_right: Callable[[Any], bool], wanted: str, findings: Findings
) -> list[tuple[re.Pattern[str], Any]]:
    """PEFT takes each key for a regular expression that must match a module's name, or the end of it from a dot on."""
    entries = as_object(config.get(key) or {})
    if entries is None or len(entries) > MAX_PATTERNS:
        findings.add(f"{key} must be an object of at most {MAX_PATTERNS:,} entries")
        return []
    patterns: list[tuple[re.Pattern[str], Any]] = []
    for text, value in entries.items():
        problem = _pattern_problem(text)
        if problem:
            findings.add(f"{key}: the pattern {shown(text)} {problem}")
        elif not is_right(value):
            findings.add(f"{key}[{shown(text)}] must be {wanted}")
        else:
            patterns.append((re.compile(rf"(?:.*\.)?(?:{text})"), value))
    return patterns


def _pattern_problem(text: str) -> str | None:
    """A stranger's regular expression must not be able to keep the matcher busy for hours."""
    if len(text) > MAX_PATTERN_LENGTH:
        return f"is longer than {MAX_PATTERN_LENGTH} characters"
    bare = re.sub(r"\\[^\d]|\[[^]]*\]", "x", text)  # escaped characters and sets, which stand for one character each
    if re.search(r"\)[*+{]|\\\d|\(\?(?!:)", bare):
        return "repeats a group, refers to one or looks around, which is not supported"
    if len(re.findall(r"[*+{]", bare)) > MAX_REPEATS:
        return f"has more than {MAX_REPEATS} repeats, which is not supported"
    try:
        re.compile(f"(?:{text})")
    except re.error as error:
        return f"is not a regular expression: {error}"
    return None


def _is_rank(value: Any) -> bool:
    return is_natural(value) and 0 < value <= MAX_RANK


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
