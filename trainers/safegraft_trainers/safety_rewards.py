"""Rewards for online safety tuning: is a harmful prompt refused, a harmless one answered, and answered right?

Each reward has the signature that TRL's GRPOTrainer calls. Knows judges; nothing of training.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safegraft.errors import InputError, Problem, UsageError
from safegraft_trainers.evaluate.example import Axis, Example, Picture, Scoring
from safegraft_trainers.evaluate.judges import Judge, Verdict

Messages = Sequence[Mapping[str, Any]]
Reward = Callable[..., list[float | None]]  # as TRL calls it


def safety_reward(judge: Judge, *, harmful_weight: float = 1.0, benign_weight: float = 1.0) -> Reward:
    """+weight for refusing a harmful prompt or answering a harmless one, -weight for the opposite.

    The reward reads the columns `unsafe` (bool) and `images` (lists of PIL images). An answer that the judge has no
    verdict on gets None, which TRL leaves out; the share of those is logged as `unjudged`. The reward raises InputError
    when there is no verdict on any.
    """

    def safety(
        *,
        prompts: Sequence[Messages],
        completions: Sequence[Messages],
        unsafe: Sequence[bool],
        images: Sequence[Sequence[Any]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        pictures = images or [()] * len(prompts)
        rows = zip(prompts, unsafe, pictures, strict=True)
        examples = [_example(str(number), *row) for number, row in enumerate(rows)]
        verdicts = judge.judge(examples, [text_of(completion) for completion in completions])
        unjudged = [verdict.error for verdict in verdicts if verdict.error]
        if len(unjudged) == len(verdicts):
            raise InputError(Problem(f"judge {judge.name}", f"no verdict on {len(unjudged)} answers: {unjudged[0]}"))
        if log_metric is not None:
            log_metric("unjudged", len(unjudged) / len(verdicts))
        rewards: list[float | None] = []
        for verdict, harmful in zip(verdicts, unsafe, strict=True):
            weight = harmful_weight if harmful else benign_weight
            rewards.append(None if verdict.error else weight if _wished(verdict, harmful, judge) else -weight)
        return rewards

    return safety


def knowledge(
    *, completions: Sequence[Messages], reference: Sequence[str], unsafe: Sequence[bool], **_: Any
) -> list[float | None]:
    """1 when the reference's words stand in the answer, in their order, else 0; None for harmful prompts and without
    a reference.

    Case, punctuation, length and format of the answer do not matter, so there is nothing to gain from any of them. It
    suits references of a few words.
    """
    rewards: list[float | None] = []
    for completion, wanted, harmful in zip(completions, reference, unsafe, strict=True):
        words = _words(wanted)
        told = f" {' '.join(_words(text_of(completion)))} "
        rewards.append(None if harmful or not words else float(f" {' '.join(words)} " in told))
    return rewards


def check_judge(judge: Judge, unsafe: Sequence[bool]) -> None:
    """Raises UsageError when there are prompts of a kind that the judge never has a verdict on."""
    if any(unsafe) and Scoring.ATTACK not in judge.scorings:
        raise UsageError(f"judge {judge.name} has no verdict on harmful prompts; give another by --judge")
    if not all(unsafe) and Scoring.REFUSAL not in judge.scorings:
        message = f"judge {judge.name} has no verdict on harmless prompts; leave them out, or give another by --judge"
        raise UsageError(message)


def text_of(messages: Messages) -> str:
    """What the last message says. TRL gives an answer as one message, a prompt as one or more."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _wished(verdict: Verdict, harmful: bool, judge: Judge) -> bool:
    if not harmful:
        return not verdict.refused
    sees_refusals = Scoring.REFUSAL in judge.scorings
    return not verdict.attacked and (verdict.refused or not sees_refusals)


def _example(number: str, prompt: Messages, harmful: bool, images: Sequence[Any]) -> Example:
    safety = Axis.MULTIMODAL_SAFETY if images else Axis.TEXT_SAFETY
    return Example(
        id=number,
        axis=safety if harmful else Axis.EXAGGERATED_SAFETY,
        scoring=Scoring.ATTACK if harmful else Scoring.REFUSAL,
        prompt=text_of(prompt),
        image=_picture(images[0], number) if images else None,
        system=text_of(prompt[:1]) if prompt[0]["role"] == "system" else "",
    )


def _picture(image: Any, number: str) -> Picture:
    encoded = io.BytesIO()
    image.convert("RGB").save(encoded, "PNG", compress_level=1)
    return Picture(encoded.getvalue(), f"prompt {number}")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
