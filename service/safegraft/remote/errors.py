"""Puts what huggingface_hub and its HTTP client raise into words: what is wrong, and what to do.

Never passes on a library's message whole: it could hold a signed URL, a token or a path. Knows no files.
"""

import errno
import json
import socket
import ssl
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from safegraft.errors import CheckpointError, Problem, SafegraftError
from safegraft.remote.access import scrub

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
MAY_PASS = (408, 429, 500, 502, 503, 504)  # statuses that trying again can cure
_MAX_SAID = 300  # characters of a server's own words

# Wraps a real reason in its __cause__.
_WRAPPERS = (LocalEntryNotFoundError, RevisionResolutionError, ValueError)


@contextmanager
def hub_errors(where: str, kind: type[SafegraftError] = CheckpointError) -> Generator[None]:
    """Turn whatever the Hub's client library raises within the block into `kind`, with `where` and words.

    where: what was asked for, such as "org/name@main". Errors of other origin pass.
    """
    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, *_WRAPPERS, EntryNotFoundError) as error:
        words = _words(error)
        if words is None:
            raise
        raise kind(Problem(where, words)) from error
    except (OfflineModeIsEnabled, LocalTokenNotFoundError, FileMetadataError) as error:
        raise kind(Problem(where, _words(error) or "")) from error


def is_unreachable(error: BaseException) -> bool:
    """Whether an error of `hub_errors` means that the Hub gave no answer: offline, unreachable, overloaded."""
    for one in _causes(error):
        if isinstance(one, (OfflineModeIsEnabled, httpx2.TransportError)):
            return True
        if isinstance(one, HfHubHTTPError):
            return one.response.status_code in MAY_PASS
    return False


def is_missing(error: BaseException) -> bool:
    """Whether an error of `hub_errors` means that the Hub shows nothing of this name."""
    found = next((one for one in _causes(error) if isinstance(one, HfHubHTTPError)), None)
    return isinstance(found, RepositoryNotFoundError) and not isinstance(found, GatedRepoError)


def transport_words(error: Exception) -> str:
    """What befell a connection."""
    causes = list(_causes(error))
    if any(isinstance(one, ssl.SSLCertVerificationError) for one in causes):
        return "its certificate is not one that this machine trusts"
    if any(isinstance(one, ssl.SSLError) for one in causes):
        return "no secure connection can be made"
    if isinstance(error, httpx2.ProxyError):
        return "the proxy refuses the connection"
    if isinstance(error, httpx2.ConnectTimeout):
        return "it cannot be reached: no answer"
    if any(isinstance(one, socket.gaierror) for one in causes):
        return "it cannot be reached: no such host is known"
    if any(isinstance(one, OSError) and one.errno == errno.ECONNREFUSED for one in causes):
        return "it cannot be reached: connection refused"
    if isinstance(error, httpx2.ConnectError):
        return "it cannot be reached"
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    if isinstance(error, (httpx2.UnsupportedProtocol, httpx2.InvalidURL)):
        return "its address is no http or https URL"
    return "the connection broke off"


def certificate_refused(error: Exception) -> bool:
    """Whether trying again is pointless, because the other side is not whom it should be."""
    return any(isinstance(one, ssl.SSLCertVerificationError) for one in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _words(error: BaseException) -> str | None:
    """None: the error is not of the Hub's making."""
    if isinstance(error, HFValidationError):
        return "is not a name that the Hub can have; write ORG/NAME"
    if isinstance(error, HfHubHTTPError):
        return _answer_words(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub is not asked, because HF_HUB_OFFLINE is set"
    if isinstance(error, LocalTokenNotFoundError):
        return f"needs a token, and there is none: {LOG_IN}"
    if isinstance(error, (httpx2.HTTPError, httpx2.InvalidURL)):
        return f"the Hub does not answer: {transport_words(error)}. Check the network (and HF_ENDPOINT, if it is set)"
    if isinstance(error, (json.JSONDecodeError, FileMetadataError)):
        return "what answers is no Hub: check HF_ENDPOINT, and whether a proxy is in the way"
    if isinstance(error, UnicodeEncodeError):  # of a header
        return f"the token holds characters that no token has: {LOG_IN}"
    if isinstance(error, _WRAPPERS):
        inner = error.__cause__
        return _words(inner) if inner is not None else None
    if isinstance(error, EntryNotFoundError):
        return "the Hub has no such file"
    return None


def _answer_words(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        if status == 401:
            return f"is gated: ask for access{_page(error)}, then {LOG_IN}"
        return f"is gated, and this account has no access: ask for it{_page(error)}, or use another account's token"
    if isinstance(error, RepositoryNotFoundError):
        return f"the Hub has nothing of this name, or it is private: check the name; if it is private, {LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return "the Hub has no such revision: check the branch, tag or commit"
    if isinstance(error, EntryNotFoundError):
        return "the Hub has no such file"
    if isinstance(error, DisabledRepoError):
        return "the Hub has disabled it: see its page there"
    if status == 401:
        return f"the Hub does not accept the token: {LOG_IN}, with one that is valid"
    if status == 403:
        return f"the token does not allow this{_said(error)}: use one with the right to it ({LOG_IN})"
    if status == 429:
        return "the Hub's rate limit is reached: wait some minutes and try again; a token raises the limit"
    if status in MAY_PASS or status >= 500:
        return f"the Hub is not well (status {status}): try again later"
    return f"the Hub refuses with status {status}{_said(error)}"


def _page(error: RepositoryNotFoundError) -> str:
    url = error.response.request.url
    port = f":{url.port}" if url.port else ""
    return f" at {url.scheme}://{url.host}{port}/{error.repo_id}" if error.repo_id else " at its page on the Hub"


def _said(error: HfHubHTTPError) -> str:
    """The server's own words, on one line."""
    text = " ".join(scrub(error.server_message or "").split())
    if not text.isprintable() or not text:
        return ""
    return f" ({text[: _MAX_SAID - 3]}...)" if len(text) > _MAX_SAID else f" ({text})"
