"""Conversations with an OpenAI-compatible endpoint, many at a time, patient with a busy one.

Knows HTTP through huggingface_hub.InferenceClient; nothing of examples or verdicts.
"""

import base64
import os
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from safegraft.errors import AuthenticationError, ServerError, ServerUnavailableError, UsageError

if TYPE_CHECKING:
    from safegraft_trainers.evaluate.example import Picture

Message = Mapping[str, Any]

BUSY = {408, 409, 425, 429}  # and all of 5xx: worth asking again
DECLINED = {400, 413, 422}  # this request as it is; not the model, the key or the URL
LONGEST_WAIT = 60.0  # seconds between two tries
MEDIA_TYPES = {b"\x89PNG\r\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


class RequestDeclinedError(ServerError):
    """The endpoint declines this one request, such as for its length or by a content filter; others may do."""


class ChatEndpoint:
    """A model at a URL such as http://localhost:8000/v1.

    api_key_variable: the environment variable that holds the key; it is read when needed and stored nowhere.
    tries: of a request, the first one included. first_wait: seconds after the first; doubles, with jitter.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_variable: str | None = None,
        workers: int = 8,
        tries: int = 6,
        first_wait: float = 1.0,
        timeout: float = 300.0,
    ) -> None:
        """Raises UsageError for a URL that is none or that holds a key, AuthenticationError when there is no key."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f"{url!r} is no endpoint: give a URL such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise UsageError(
                f"the endpoint at {parts.hostname}: a key belongs into an environment variable, not the URL"
            )
        if api_key_variable is not None and not os.environ.get(api_key_variable):
            raise AuthenticationError(f"{url}: the environment variable {api_key_variable} holds no key; set it")
        self.url, self.model, self.workers = url, model, workers
        self._api_key_variable = api_key_variable
        self._tries, self._first_wait, self._timeout = tries, first_wait, timeout

    def replies(self, conversations: Sequence[Sequence[Message]], **options: Any) -> list[str]:
        """One reply a conversation, in their order. options: of a chat completion, such as max_tokens.

        Raises RequestDeclinedError and other kinds of ServerError: ServerUnavailableError when it stays busy or away,
        AuthenticationError when it does not take the key. Requests not yet sent are dropped then.
        """
        replies: list[str] = []
        for found in self.replies_or_declined(conversations, **options):
            if isinstance(found, RequestDeclinedError):
                raise found
            replies.append(found)
        return replies

    def replies_or_declined(
        self, conversations: Sequence[Sequence[Message]], **options: Any
    ) -> list[str | RequestDeclinedError]:
        """The same, with the error in the place of the reply where the endpoint declines a request."""
        client, stopped = self._client(), threading.Event()

        def reply(conversation: Sequence[Message]) -> str | RequestDeclinedError:
            try:
                return self._reply(client, conversation, options, stopped)
            except RequestDeclinedError as error:
                return error

        pool = ThreadPoolExecutor(self.workers)
        try:
            return list(pool.map(reply, conversations))
        finally:
            stopped.set()  # whoever waits for another try gives up
            pool.shutdown(cancel_futures=True)

    def _client(self) -> Any:
        from huggingface_hub import InferenceClient

        # Without a key of its own, a key of the Hub's must not go to a stranger's server.
        key = os.environ[self._api_key_variable] if self._api_key_variable else "none"
        return InferenceClient(base_url=self.url, api_key=key, timeout=self._timeout)

    def _reply(
        self, client: Any, messages: Sequence[Message], options: Mapping[str, Any], stopped: threading.Event
    ) -> str:
        last = ServerUnavailableError(self.url)
        for tried in range(1, self._tries + 1):
            try:
                completion = client.chat_completion(list(messages), model=self.model, **options)
            except Exception as error:  # of the network, the server, or a reply that is none
                last = self._explained(error)
                if not isinstance(last, ServerUnavailableError):
                    raise last from error
            else:
                return self._content(completion)
            wait = min(LONGEST_WAIT, self._first_wait * 2 ** (tried - 1)) * random.uniform(0.5, 1.0)
            if tried < self._tries and stopped.wait(wait):
                break
        raise ServerUnavailableError(f"{last} (asked {self._tries} times)")

    def _content(self, completion: Any) -> str:
        """The text of a reply; empty when the model said nothing, its refusal where the endpoint sets that apart."""
        if not completion.choices:
            raise ServerError(f"{self.url}: a reply of {self.model} is no chat completion: it has no choices")
        message = completion.choices[0].message
        return (message.content or message.get("refusal") or "").strip()

    def _explained(self, error: Exception) -> ServerError:
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HTTPError,  # pyright: ignore[reportPrivateImportUsage] (httpx's, whichever httpx the library stands on)
            InferenceTimeoutError,
            OfflineModeIsEnabled,
        )

        if isinstance(error, OfflineModeIsEnabled):
            return ServerError(f"{self.url}: HF_HUB_OFFLINE forbids all requests; unset it to ask an endpoint")
        if isinstance(error, InferenceTimeoutError):
            return ServerUnavailableError(f"{self.url}: no reply within {self._timeout:g} s")
        if isinstance(error, HfHubHTTPError):
            status, said = error.response.status_code, " ".join(error.response.text.split())[:300]
            if status in (401, 403):
                hint = f"check {self._api_key_variable}" if self._api_key_variable else "name the key's variable"
                return AuthenticationError(f"{self.url}: {status}, the key is not accepted ({said}); {hint}")
            busy = status in BUSY or status >= 500
            kind = ServerUnavailableError if busy else RequestDeclinedError if status in DECLINED else ServerError
            return kind(f"{self.url}: {status} for {self.model}: {said}")
        if isinstance(error, HTTPError):
            return ServerUnavailableError(f"{self.url}: {error or type(error).__name__}")
        return ServerError(
            f"{self.url}: a reply of {self.model} is no chat completion: {type(error).__name__}: {error}"
        )


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def image_part(picture: "Picture") -> dict[str, Any]:
    """The encoded image as it is, in a data URL; pixels only where the encoding is none that endpoints know."""
    kind = next((kind for magic, kind in MEDIA_TYPES.items() if picture.content.startswith(magic)), None)
    content = picture.content if kind else _as_png(picture)
    url = f"data:image/{kind or 'png'};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _as_png(picture: "Picture") -> bytes:
    import io

    written = io.BytesIO()
    picture.open().save(written, "PNG")
    return written.getvalue()
