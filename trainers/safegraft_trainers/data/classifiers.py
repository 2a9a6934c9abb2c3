"""The models that say whether a text, an image or a conversation is unsafe; each through transformers, by name.

A finding is (score from 0 to 1, what was found). Knows no data sets.
"""

# transformers and torch type their functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from safegraft.checkpoint.findings import listed
from safegraft.errors import InputError, Problem, UsageError

Finding = tuple[float, str]
Conversation = Sequence[tuple[str, str]]  # (role, text)

# What well-known classifiers call unsafe, in lower case: unitary/toxic-bert, unitary/unbiased-toxic-roberta (whose
# other labels are who is spoken of), s-nlp/roberta_toxicity_classifier, martin-ha/toxic-comment-model,
# facebook/roberta-hate-speech-dynabench-r4-target, cardiffnlp/twitter-roberta-base-offensive,
# michellejieli/NSFW_text_classifier; Falconsai/nsfw_image_detection, AdamCodd/vit-base-nsfw-detector,
# LukeJacob2023/nsfw-image-detector.
UNSAFE_LABELS = frozenset(
    [
        "unsafe",
        "harmful",
        "toxic",
        "severe_toxic",
        "toxicity",
        "severe_toxicity",
        "obscene",
        "threat",
        "insult",
        "identity_hate",
        "identity_attack",
        "sexual_explicit",
        "hate",
        "offensive",
        "nsfw",
        "porn",
        "hentai",
        "sexy",
    ]
)
# Labels that mean nothing without the model.
UNSAFE_LABELS_OF: Mapping[str, frozenset[str]] = {
    "KoalaAI/Text-Moderation": frozenset({"s", "h", "v", "hr", "sh", "s3", "h2", "v2"}),
    "Freepik/nsfw_image_detector": frozenset({"medium", "high"}),
}

MAX_WINDOW = 512  # tokens of a text that are looked at together
GUARD_TOKENS = 16  # "unsafe" and some categories
TOO_LONG, NO_VERDICT = "too long to judge", "no verdict"


class TextClassifier:
    """A sequence classifier; `labels` are the unsafe ones.

    A text longer than it can read is looked at in windows, and the worst one counts.
    """

    def __init__(self, name: str, unsafe: Sequence[str] | None, *, batch_size: int, device: str) -> None:
        self._pipeline = _pipeline("text-classification", name, device)
        self.labels, self._unsafe = _unsafe_labels(name, self._pipeline, unsafe)
        self._batch_size = batch_size
        tokenizer = self._pipeline.tokenizer
        if not tokenizer.is_fast:
            raise InputError(Problem(name, "has no fast tokenizer, which long texts need: choose another classifier"))
        longest = getattr(self._pipeline.model.config, "max_position_embeddings", MAX_WINDOW)
        longest = min(longest, tokenizer.model_max_length, MAX_WINDOW)
        self._window = longest - tokenizer.num_special_tokens_to_add()

    def __call__(self, texts: Sequence[str]) -> list[Finding]:
        windows = [(number, window) for number, text in enumerate(texts) for window in self._windows(text)]
        given = [window for _, window in windows]
        scores = self._pipeline(given, batch_size=self._batch_size, truncation=True, max_length=MAX_WINDOW)
        found: list[Finding] = [(0.0, "")] * len(texts)
        for (number, _), labels in zip(windows, scores, strict=True):
            found[number] = max(found[number], self._unsafe(labels))
        return found

    def _windows(self, text: str) -> Iterator[str]:
        """Pieces of at most a window, an eighth of it shared, so that nothing is cut in two unseen."""
        if len(text.encode()) <= self._window:  # no tokenizer makes two tokens of a byte
            yield text
            return
        encoded = self._pipeline.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )
        places: list[tuple[int, int]] = encoded["offset_mapping"]
        for first in range(0, max(1, len(places)), max(1, self._window - self._window // 8)):
            piece = places[first : first + self._window]
            yield text[piece[0][0] : piece[-1][1]] if piece else text
            if first + self._window >= len(places):
                return


class ImageClassifier:
    """An image classifier, such as a detector of nudity; `labels` are the unsafe ones."""

    def __init__(self, name: str, unsafe: Sequence[str] | None, *, batch_size: int, device: str) -> None:
        self._pipeline = _pipeline("image-classification", name, device)
        self.labels, self._unsafe = _unsafe_labels(name, self._pipeline, unsafe)
        self._batch_size = batch_size

    def __call__(self, images: Sequence[Any]) -> list[Finding]:
        """images: PIL images in RGB."""
        return [self._unsafe(labels) for labels in self._pipeline(list(images), batch_size=self._batch_size)]


class Guard:
    """A generative guard as Llama Guard is one: shown a conversation, it answers "safe", or "unsafe" and categories.

    It reads texts; a system message is not shown to it, as the guards' templates know none. Score: 1 when it does not
    answer "safe".
    """

    def __init__(self, name: str, *, batch_size: int, device: str, dtype: str = "auto") -> None:
        from safegraft_trainers.loading import load

        self._loaded = load(name, dtype=dtype, device=device)
        self._batch_size = batch_size
        config = self._loaded.model.config.get_text_config()
        self._longest = getattr(config, "max_position_embeddings", None) or math.inf
        self._content = _content_of(self._loaded.front, name)

    def __call__(self, conversations: Sequence[Conversation]) -> list[Finding]:
        prompts = [self._prompt(conversation) for conversation in conversations]
        tokenizer = self._loaded.tokenizer
        encoded = [tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"] for prompt in prompts]
        found: list[Finding] = [(1.0, TOO_LONG)] * len(prompts)
        short = [number for number, tokens in enumerate(encoded) if len(tokens) + GUARD_TOKENS <= self._longest]
        short.sort(key=lambda number: len(encoded[number]))  # like lengths together: less padding
        for first in range(0, len(short), self._batch_size):
            batch = short[first : first + self._batch_size]
            for number, answer in zip(batch, self._answers([encoded[number] for number in batch]), strict=True):
                found[number] = verdict(answer)
        return found

    def _prompt(self, conversation: Conversation) -> str:
        messages = [{"role": role, "content": self._content(text)} for role, text in conversation if role != "system"]
        return self._loaded.front.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _answers(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        import torch

        tokenizer = self._loaded.tokenizer
        inputs = tokenizer.pad({"input_ids": list(prompts)}, return_tensors="pt").to(self._loaded.device)
        with torch.inference_mode():
            tokens = self._loaded.model.generate(
                **inputs, max_new_tokens=GUARD_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        return tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def verdict(answer: str) -> Finding:
    """From "safe", or "unsafe" and on the next line the categories."""
    words = answer.lower().replace(",", " ").split()
    if words[:1] == ["safe"]:
        return 0.0, ""
    if words[:1] == ["unsafe"]:
        return 1.0, " ".join(answer.replace(",", " ").split()[1:]) or "unsafe"
    return 1.0, NO_VERDICT


def _pipeline(task: str, name: str, device: str) -> Any:
    import transformers

    make: Any = transformers.pipeline
    try:
        return make(task, model=name, device=device, top_k=None, trust_remote_code=False)
    except Exception as error:  # configs and preprocessors are strangers' data
        message = f"cannot be loaded for {task}: {type(error).__name__}: {error}"
        raise InputError(Problem(name, message)) from error


def _unsafe_labels(
    name: str, pipeline: Any, asked: Sequence[str] | None
) -> tuple[list[str], Callable[[Iterable[Any]], Finding]]:
    """The labels that mean unsafe, and what sums up the labels of one input.

    Raises UsageError when it is not clear which of them are unsafe.
    """
    config = pipeline.model.config
    labels = [str(label) for label in config.id2label.values()]
    wanted = {label.lower() for label in asked} if asked is not None else UNSAFE_LABELS_OF.get(name, UNSAFE_LABELS)
    unsafe = {label for label in labels if label.lower() in wanted}
    unknown = wanted - {label.lower() for label in labels} if asked is not None else ()
    if unknown or not unsafe:
        which = f"has no label {listed(sorted(unknown))}" if unknown else "has no label that is known to mean unsafe"
        raise UsageError(Problem(name, f"{which}; say which of its labels do: {listed(labels, most=20)}"))
    independent = config.problem_type == "multi_label_classification" or config.num_labels == 1

    def summed_up(scores: Iterable[Any]) -> Finding:
        """Probabilities of labels that exclude each other add up; of others, the highest counts."""
        found = [(float(one["score"]), str(one["label"])) for one in scores if one["label"] in unsafe]
        highest, label = max(found)
        return (highest if independent else min(1.0, sum(score for score, _ in found))), label

    return sorted(unsafe), summed_up


def _content_of(front: Any, name: str) -> Callable[[str], Any]:
    """How a guard's template wants a message's content: as a text or as parts. It says nothing itself when wrong."""
    import jinja2

    def as_parts(text: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": text}]

    sign = "a text that stands for itself"
    for content in (str, as_parts):
        try:
            rendered = front.apply_chat_template([{"role": "user", "content": content(sign)}], tokenize=False)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError):
            continue
        if sign in rendered and f"'{sign}'" not in rendered:
            return content
    raise InputError(Problem(name, "has no chat template that shows a user's message: it cannot be used as a guard"))
