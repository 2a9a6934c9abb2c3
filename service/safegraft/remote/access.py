"""Which Hub is spoken to, and as whom. Knows no repositories; nothing here shows a token."""

import re
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LIBRARY = "safegraft"

_TOKEN = re.compile(r"\b(hf_|api_org_)[A-Za-z0-9]{4,}|(?<=Bearer )\S+", re.IGNORECASE)
_URL = re.compile(r"\b([a-z][a-z0-9+.-]*://)([^\s/?#@]*@)?([^\s?#'\"<>]*)(\?[^\s'\"<>]*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HubAccess:
    """endpoint: of a mirror; None: HF_ENDPOINT, or huggingface.co.

    token: None: as huggingface_hub finds it (HF_TOKEN, then what `hf auth login` stored); False: none is sent.
    """

    endpoint: str | None = None
    token: str | Literal[False] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The endpoint, without a slash at its end."""
        from huggingface_hub import constants

        return (self.endpoint or constants.ENDPOINT).rstrip("/")

    def api(self) -> "HfApi":
        """huggingface_hub's client for this Hub."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.url, token=self.token, library_name=LIBRARY, library_version=version(LIBRARY))

    def headers(self) -> dict[str, str]:
        """For requests of our own. They hold the token: for this endpoint alone."""
        from huggingface_hub import utils

        return utils.build_hf_headers(  # pyright: ignore[reportUnknownMemberType]
            token=self.token, library_name=LIBRARY, library_version=version(LIBRARY)
        )


def scrub(text: str) -> str:
    """A text of somebody else without tokens, and with its URLs without user info and query."""
    return _TOKEN.sub("***", _URL.sub(r"\1\3", text))
