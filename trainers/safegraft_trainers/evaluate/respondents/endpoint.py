"""A model behind an OpenAI-compatible endpoint (vLLM, TGI, llama.cpp, a vendor's) answers.

Knows the shape of a chat completion; how requests are sent, and sent again, is chat.py's.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from safegraft.errors import InputError, Problem
from safegraft_trainers.evaluate.example import Example
from safegraft_trainers.evaluate.respondents.chat import ChatEndpoint, image_part, text_part


class EndpointRespondent:
    """Asks `model` at `url`.

    Its digest knows the URL and the name alone: whoever serves other weights under an old name has to clear the cache.
    sees_images: whether it may be sent any; the endpoint does not say.
    """

    tells_likelihoods = False

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_variable: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        sees_images: bool = True,
        workers: int = 8,
        tries: int = 6,
        first_wait: float = 1.0,
        timeout: float = 300.0,
    ) -> None:
        """Raises AuthenticationError when the variable that holds the key is not set."""
        self._chat = ChatEndpoint(
            url,
            model,
            api_key_variable=api_key_variable,
            workers=workers,
            tries=tries,
            first_wait=first_wait,
            timeout=timeout,
        )
        self._max_new_tokens, self._temperature, self._top_p, self._seed = max_new_tokens, temperature, top_p, seed
        self.name = model
        self.digest = hashlib.sha256(f"{url}\n{model}".encode()).hexdigest()
        self.batch_size = 4 * workers
        self.sees_images = sees_images

    @property
    def settings(self) -> Mapping[str, str | int | float | bool | None]:
        drawn = {"top_p": self._top_p, "seed": self._seed}
        return {
            "through": self._chat.url,
            "max_new_tokens": self._max_new_tokens,
            "temperature": self._temperature,
            **(drawn if self._temperature else {}),
        }

    def answer(self, examples: Sequence[Example]) -> list[str]:
        """Raises ServerError and its kin: see `ChatEndpoint.replies`."""
        return self._chat.replies(
            [_conversation(one) for one in examples],
            max_tokens=self._max_new_tokens,
            temperature=self._temperature,
            **({"top_p": self._top_p, "seed": self._seed} if self._temperature else {}),
        )

    def likelihoods(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """Raises InputError: chat completions do not tell the likelihood of a given text."""
        raise InputError(Problem(self.name, "an endpoint does not tell how likely a given text is"))


def _conversation(example: Example) -> list[Mapping[str, Any]]:
    content: Any = example.prompt
    if example.image is not None:
        content = [image_part(example.image), text_part(example.prompt)]
    system = [{"role": "system", "content": example.system}] if example.system else []
    return [*system, {"role": "user", "content": content}]
