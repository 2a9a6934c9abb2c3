"""A model here answers, through transformers: whole batches, its own chat template, pictures where it sees them.

Knows transformers' models, processors and tokenizers; nothing of suites, scores or judges.
"""

# transformers and torch type their models and tokenizers in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import contextlib
import hashlib
import inspect
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safegraft.errors import CheckpointError, InputError, Problem, UsageError
from safegraft_trainers.evaluate.example import Example
from safegraft_trainers.evaluate.respondents.batching import batches

if TYPE_CHECKING:
    from safegraft_trainers.loading import Loaded

END_OF_TURN_PROBE = "safegraft"  # any text: what the template writes right after an answer ends the answer


class TransformersRespondent:
    """Asks a loaded model.

    temperature: 0 takes the likeliest token each time; otherwise tokens are drawn, top_p and seed with it. Draws depend
    on the batch as well, so that equal settings give equal answers only for equal batches.
    threads: of torch, while it works; None leaves them alone. In small models on a busy machine they only wait for
    each other: one is best there.
    """

    tells_likelihoods = True

    def __init__(
        self,
        loaded: "Loaded",
        max_new_tokens: int = 256,
        batch_size: int = 16,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        """Raises UsageError for settings out of range."""
        if max_new_tokens < 1 or batch_size < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise UsageError(
                "a model is asked with max_new_tokens and batch_size of at least 1, temperature of at least 0 and "
                f"0 < top_p <= 1; given are {max_new_tokens}, {batch_size}, {temperature:g} and {top_p:g}"
            )
        self._loaded = loaded
        self._max_new_tokens, self._temperature, self._top_p = max_new_tokens, temperature, top_p
        self._seed, self._threads = seed, threads
        self.name, self.digest = loaded.name, loaded.digest
        self.batch_size = batch_size
        self.sees_images = loaded.multimodal
        self._template = bool(loaded.front.chat_template)
        self._stops = _stop_tokens(loaded, self._template)

    @property
    def settings(self) -> Mapping[str, str | int | float | bool | None]:
        drawn = {"top_p": self._top_p, "seed": self._seed, "batch_size": self.batch_size}
        return {
            "through": "transformers",
            "dtype": str(self._loaded.model.dtype).removeprefix("torch."),
            "max_new_tokens": self._max_new_tokens,
            "chat_template": self._template,
            "temperature": self._temperature,
            **(drawn if self._temperature else {}),
        }

    def answer(self, examples: Sequence[Example]) -> list[str]:
        """Raises InputError for an image that is none or that the model does not see, CheckpointError when it fails."""
        unseen = [one.id for one in examples if one.image is not None and not self.sees_images]
        if unseen:
            raise InputError(
                Problem(self.name, f"sees no images, and {len(unseen)} prompts have one: {unseen[0]}, ...")
            )
        answers = [""] * len(examples)
        for batch in batches(examples, self.batch_size):
            for index, text in zip(batch, self._generate([examples[index] for index in batch]), strict=True):
                answers[index] = text
        return answers

    def continue_texts(self, texts: Sequence[str], *, special_tokens: bool) -> list[str]:
        """Continue texts that are whole prompts already. special_tokens: those of the tokenizer go around them."""
        order = sorted(range(len(texts)), key=lambda index: (-len(texts[index]), index))
        continued = [""] * len(texts)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            inputs = self._encoded([texts[index] for index in batch], [], special_tokens=special_tokens)
            for index, text in zip(batch, self._continue(inputs), strict=True):
                continued[index] = text
        return continued

    def likelihoods(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """Without the chat template. A context that is empty is the token that begins a text."""
        encoded = [self._split(context, continuation) for context, continuation in texts]
        order = sorted(range(len(texts)), key=lambda index: -len(encoded[index][0]))
        found = [0.0] * len(texts)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for index, value in zip(batch, self._log_probabilities([encoded[index] for index in batch]), strict=True):
                found[index] = value
        return found

    # -- generation ---------------------------------------------------------------------------------

    def _generate(self, batch: Sequence[Example]) -> list[str]:
        images = [[one.image.open()] for one in batch if one.image is not None]
        texts = [self._written(one) for one in batch]
        inputs = self._encoded(texts, images, special_tokens=not self._template)  # a chat template writes its own
        with self._drawing(batch):
            return self._continue(inputs)

    def _encoded(self, texts: Sequence[str], images: Sequence[Any], *, special_tokens: bool) -> dict[str, Any]:
        """A batch as tensors on the model's device."""
        model = self._loaded.model
        pictures = {"images": list(images)} if images else {}
        encoded = self._loaded.front(
            text=list(texts), **pictures, add_special_tokens=special_tokens, padding=True, return_tensors="pt"
        )
        # Tokenizers make token types by habit; a model that does not name them would refuse or misread them.
        named = inspect.signature(model.forward).parameters
        tensors = {name: value for name, value in encoded.items() if name != "token_type_ids" or name in named}
        return {
            name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
            for name, value in tensors.items()
        }

    def _continue(self, inputs: Mapping[str, Any]) -> list[str]:
        import torch
        from transformers import GenerationConfig

        sampling = {"do_sample": True, "temperature": self._temperature, "top_p": self._top_p, "top_k": 0}
        asked: Any = GenerationConfig(
            max_new_tokens=self._max_new_tokens,
            eos_token_id=self._stops or None,
            pad_token_id=self._loaded.tokenizer.pad_token_id,
            **(sampling if self._temperature else {"do_sample": False}),
        )
        with _threads(self._threads), torch.inference_mode():
            output = self._loaded.model.generate(**inputs, generation_config=asked)
        answers = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self._loaded.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def _written(self, example: Example) -> str:
        """The whole prompt as the model reads it, up to where its answer begins."""
        front = self._loaded.front
        if not self._template:
            image = "" if example.image is None else f"{front.image_token}\n"
            return "\n\n".join(filter(None, (example.system, image + example.prompt)))
        system = [{"role": "system", "content": self._content(example.system)}] if example.system else []
        picture = [{"type": "image"}] if example.image is not None else []
        user = {"role": "user", "content": self._content(example.prompt, picture)}
        return _apply_template(self._loaded, [*system, user], add_generation_prompt=True)

    def _content(self, text: str, picture: Sequence[dict[str, str]] = ()) -> Any:
        """Templates of processors read parts, those of text models plain text."""
        return [*picture, {"type": "text", "text": text}] if self.sees_images else text

    @contextlib.contextmanager
    def _drawing(self, batch: Sequence[Example]) -> Generator[None]:
        """Seeds torch's global generators for a batch by what is in it, and leaves them as they were."""
        import torch

        if not self._temperature:
            yield
            return
        content = "\n".join([str(self._seed), *(one.fingerprint() for one in batch)])
        device = self._loaded.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int.from_bytes(hashlib.sha256(content.encode()).digest()[:8]) >> 1)
            yield

    # -- likelihoods --------------------------------------------------------------------------------

    def _split(self, context: str, continuation: str) -> tuple[list[int], int]:
        """The tokens of both together, and how many of them are the context's."""
        tokenizer = self._loaded.tokenizer
        before: list[int] = tokenizer(context).input_ids if context else []
        whole: list[int] = tokenizer(context + continuation).input_ids
        shared = sum(1 for _ in _common_prefix(before, whole))
        begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if not shared and whole[:1] != [begin]:  # nothing comes before the continuation, so what begins a text does
            whole = [begin, *whole]
        shared = max(shared, 1)
        if shared >= len(whole) or begin is None:
            message = f"{continuation!r} has no likelihood after {context!r}: it has no token of its own"
            raise InputError(Problem(self.name, message))
        return whole, shared

    def _log_probabilities(self, rows: Sequence[tuple[list[int], int]]) -> list[float]:
        import torch

        longest = max(len(tokens) for tokens, _ in rows)
        pad = self._loaded.tokenizer.pad_token_id
        ids = torch.full((len(rows), longest), 0 if pad is None else pad)
        seen = torch.zeros_like(ids)
        for row, (tokens, _) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            seen[row, : len(tokens)] = 1
        model = self._loaded.model
        with _threads(self._threads), torch.inference_mode():
            logits = model(input_ids=ids.to(model.device), attention_mask=seen.to(model.device)).logits
            told = logits[:, :-1].float().log_softmax(-1).cpu()
        chosen = told.gather(-1, ids[:, 1:, None]).squeeze(-1).double()
        return [float(chosen[row, shared - 1 : len(tokens) - 1].sum()) for row, (tokens, shared) in enumerate(rows)]


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> Generator[int]:
    for one, other in zip(first, second, strict=False):
        if one != other:
            return
        yield one


def _apply_template(loaded: "Loaded", messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        return loaded.front.apply_chat_template(
            list(messages), add_generation_prompt=add_generation_prompt, tokenize=False
        )
    except (TemplateError, TypeError, KeyError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise CheckpointError(Problem(loaded.name, f"its chat template fails on ({roles}): {error}")) from error


def _stop_tokens(loaded: "Loaded", template: bool) -> list[int]:
    """What ends an answer: the model's end of text, and the token that its chat template writes after an answer.

    A chat model's own generation settings name that token too, but not every checkpoint carries them.
    """
    configured: Any = loaded.model.generation_config.eos_token_id
    stops: set[Any] = {loaded.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    if template:
        stops.add(_end_of_turn(loaded))
    return sorted(token for token in stops if token is not None)


def _end_of_turn(loaded: "Loaded") -> int | None:
    """The special token that follows an answer in the chat template; None when there is none."""

    def content(text: str) -> Any:
        return [{"type": "text", "text": text}] if loaded.multimodal else text

    conversation = [
        {"role": "user", "content": content("?")},
        {"role": "assistant", "content": content(END_OF_TURN_PROBE)},
    ]
    written = _apply_template(loaded, conversation, add_generation_prompt=False)
    after = written.rpartition(END_OF_TURN_PROBE)[2].strip()
    specials = {str(token): index for index, token in loaded.tokenizer.added_tokens_decoder.items() if token.special}
    return next((specials[token] for token in specials if after.startswith(token)), None)


@contextlib.contextmanager
def _threads(count: int | None) -> Generator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
