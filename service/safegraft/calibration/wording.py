"""A sample as a model takes it: tokens, and pixels where it sees, through its own tokenizer, template and processor.

One sample at a time, so there is no padding anywhere. Runs no model.
"""

# torch and transformers type their own functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import io
import json
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from safegraft.calibration.data import Image, Sample
from safegraft.calibration.request import takes_images
from safegraft.checkpoint.sidecars import strip_auto_map
from safegraft.checkpoint.types import Checkpoint
from safegraft.errors import InputError, Problem

LEGACY_TEMPLATE = "chat_template.json"


@dataclass(frozen=True, slots=True)
class Worded:
    """where: the sample's row, for messages. inputs: the model's keyword arguments, a batch of one. targets: the
    positions of the tokens that count in the loss; each is predicted at the position before."""

    where: str
    inputs: Mapping[str, Any]
    targets: torch.Tensor

    @property
    def tokens(self) -> torch.Tensor:
        """[T]"""
        return self.inputs["input_ids"][0]


class Wording:
    """How one model is spoken to.

    A prompt with a response goes through the chat template where the model has one, else it is the prompt, a new line
    and the response. A text is taken as it is. A text-only model is not shown images. No more than `max_length` tokens
    are taken of a sample, not counting those that stand for its image.

    Raises InputError when tokenizer, template or processor fail.
    """

    def __init__(self, checkpoint: Checkpoint, images: bool) -> None:
        self._name = checkpoint.name
        self._sees = takes_images(checkpoint.config)
        self._image_token = checkpoint.config.get("image_token_id", checkpoint.config.get("image_token_index"))
        with sidecar_folder(checkpoint) as folder, self._explained("its tokenizer or processor cannot be loaded"):
            options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **options)
            self._template: Any = self._tokenizer.chat_template or _legacy_template(checkpoint)
            self._processor: Any = None
            if images and self._sees:
                self._processor = transformers.AutoProcessor.from_pretrained(folder, **options)
                self._template = self._processor.chat_template or self._template

    def response(self, field: str, sample: Sample, max_length: int) -> Worded:
        """The prompt, and the response in `field`, whose tokens count in the loss."""
        prompt, response = sample.texts["prompt"], sample.texts[field]
        image = self._image_of(sample)
        if self._template is None:
            begin = self._plain(f"{prompt}\n", image)
            whole, special = begin + response, True
        else:
            begin = self._rendered(sample, [("user", prompt)], image, answer=True)
            whole = self._rendered(sample, [("user", prompt), ("assistant", response)], image, answer=False)
            special = self._adds_special_tokens(whole)
        inputs = self._tokenized(sample, whole, image, special)
        asked = self._tokenized(sample, begin, image, special)["input_ids"][0]
        return self._worded(sample, inputs, _common_prefix(inputs["input_ids"][0], asked), max_length)

    def text(self, sample: Sample, max_length: int) -> Worded:
        """The text of a sample, of which every token but the first counts in the loss."""
        image = self._image_of(sample)
        inputs = self._tokenized(sample, self._plain(sample.texts["text"], image), image, special=True)
        return self._worded(sample, inputs, 1, max_length)

    def prompt(self, sample: Sample, max_length: int) -> Worded:
        """What the model reads before it answers: the prompt, without a response. Nothing counts in a loss."""
        image = self._image_of(sample)
        if self._template is None:
            inputs = self._tokenized(sample, self._plain(f"{sample.texts['prompt']}\n", image), image, special=True)
        else:
            rendered = self._rendered(sample, [("user", sample.texts["prompt"])], image, answer=True)
            inputs = self._tokenized(sample, rendered, image, self._adds_special_tokens(rendered))
        return Worded(sample.where, self._cut(sample, inputs, max_length), torch.empty(0, dtype=torch.long))

    def _image_of(self, sample: Sample) -> Any:
        return _opened(sample.image) if self._processor is not None and sample.image is not None else None

    def _plain(self, text: str, image: Any) -> str:
        """A text without a template; its image comes first."""
        if image is None:
            return text
        token = getattr(self._processor, "image_token", None)  # each processor has attributes of its own
        if not isinstance(token, str):
            message = "has no chat template, and its processor names no image token: where an image goes is not known"
            raise InputError(Problem(self._name, message))
        return f"{token}\n{text}"

    def _rendered(self, sample: Sample, turns: Sequence[tuple[str, str]], image: Any, *, answer: bool) -> str:
        """Through the chat template. Templates of LVLMs want contents in parts and drop a plain text in silence, and
        others the other way round: what counts is that the texts come out."""
        forms = [True, False] if self._sees else [False]
        for in_parts in forms:
            with self._explained(f"its chat template fails on {sample.where}"):
                rendered: str = self._tokenizer.apply_chat_template(
                    _messages(turns, image, in_parts),
                    chat_template=self._template,
                    tokenize=False,
                    add_generation_prompt=answer,
                )
            if all(text.strip() in rendered for _, text in turns):
                return rendered
        raise InputError(Problem(self._name, f"its chat template leaves out or changes the texts of {sample.where}"))

    def _adds_special_tokens(self, rendered: str) -> bool:
        """A template of an LLM writes them; one of an LVLM may leave the first to the tokenizer."""
        first = self._tokenizer.bos_token
        return self._sees and first is not None and not rendered.startswith(first)

    def _tokenized(self, sample: Sample, text: str, image: Any, special: bool) -> dict[str, Any]:
        with self._explained(f"its tokenizer or processor fails on {sample.where}"):
            if image is not None:
                made: Any = self._processor(
                    text=[text], images=[image], add_special_tokens=special, return_tensors="pt"
                )
                return dict(made)
            made = self._tokenizer(text, add_special_tokens=special, return_tensors="pt")
            return {"input_ids": made["input_ids"].long(), "attention_mask": made["attention_mask"]}

    def _worded(self, sample: Sample, inputs: dict[str, Any], begin: int, max_length: int) -> Worded:
        inputs = self._cut(sample, inputs, max_length)
        tokens = inputs["input_ids"][0]
        counts = torch.arange(len(tokens)) >= max(begin, 1)
        if self._image_token is not None:
            counts &= tokens != self._image_token
        targets = counts.nonzero().flatten()
        if not len(targets):
            message = (
                f"none of its response is left within max_length, {max_length} tokens: raise max_length"
                if begin >= len(tokens) and begin > 1
                else "has no token to predict: its text is a single token"
            )
            raise InputError(Problem(sample.where, message))
        return Worded(sample.where, inputs, targets)

    def _cut(self, sample: Sample, inputs: dict[str, Any], max_length: int) -> dict[str, Any]:
        tokens = inputs["input_ids"][0]
        if not len(tokens):
            raise InputError(Problem(sample.where, f"gives no token with the tokenizer of {self._name}"))
        images = int((tokens == self._image_token).sum()) if self._image_token is not None else 0
        keep = max_length + images
        if len(tokens) <= keep:
            return inputs
        if self._image_token is not None and (tokens[keep:] == self._image_token).any():
            message = f"its image comes after max_length, {max_length} tokens: raise max_length"
            raise InputError(Problem(sample.where, message))
        return {
            name: value[:, :keep] if torch.is_tensor(value) and value.shape[:2] == (1, len(tokens)) else value
            for name, value in inputs.items()
        }

    @contextmanager
    def _explained(self, what: str) -> Generator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # tokenizers, templates and processors are strangers' code and data
            raise InputError(Problem(self._name, f"{what}: {type(error).__name__}: {error}")) from error


@contextmanager
def sidecar_folder(checkpoint: Checkpoint) -> Generator[Path]:
    """A folder with the checkpoint's files beside the weights, as transformers wants them; without code of its own."""
    with tempfile.TemporaryDirectory(prefix="safegraft-") as name:
        for file, content in checkpoint.sidecars.items():
            path = Path(name, file)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(strip_auto_map(file, content, checkpoint.name))
        yield Path(name)


def _messages(turns: Sequence[tuple[str, str]], image: Any, in_parts: bool) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for index, (role, text) in enumerate(turns):
        parts: list[dict[str, str]] = [{"type": "image"}] if image is not None and index == 0 else []
        messages.append({"role": role, "content": [*parts, {"type": "text", "text": text}] if in_parts else text})
    return messages


def _legacy_template(checkpoint: Checkpoint) -> str | None:
    """Older LVLMs have it in a file that only processors read."""
    content = checkpoint.sidecars.get(LEGACY_TEMPLATE)
    return json.loads(content).get("chat_template") if content is not None else None


def _opened(image: Image) -> Any:
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    try:
        with Pillow.open(io.BytesIO(image.read())) as picture:
            return picture.convert("RGB")
    except UnidentifiedImageError as error:
        raise InputError(Problem(image.where, "its image is of no kind that pillow reads")) from error
    except (OSError, ValueError, Pillow.DecompressionBombError) as error:
        raise InputError(Problem(image.where, f"its image cannot be read: {error}")) from error


def _common_prefix(one: torch.Tensor, other: torch.Tensor) -> int:
    length = min(len(one), len(other))
    differ = (one[:length] != other[:length]).nonzero()
    return int(differ[0]) if len(differ) else length
