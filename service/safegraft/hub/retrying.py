"""Asks the Hub again where that may help: it is busy, limits how often it is asked, or the connection broke off.

Knows no repositories. What cannot help, such as a token that is not accepted, is raised at once.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError

from safegraft.errors import MergeCancelledError
from safegraft.remote.errors import MAY_PASS, certificate_refused
from safegraft.remote.http_ranges import Clock, asked_pause

ATTEMPTS = 5
FIRST_PAUSE = 0.5  # seconds; doubled each time
LONGEST_PAUSE = 600.0  # seconds that are waited because the Hub asks for it; its rate limits last 300
POLL = 0.1  # seconds

_Result = TypeVar("_Result")
_LASTING = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)


def retried(action: Callable[[], _Result], cancelled: Callable[[], bool]) -> _Result:
    """What `action` returns, tried up to ATTEMPTS times. It has to be one that may be done twice.

    Raises what `action` raised last, and MergeCancelledError.
    """
    for failed in range(1, ATTEMPTS):
        try:
            return action()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            if not may_pass(error):
                raise
            pause(error, failed, cancelled)
    return action()


def may_pass(error: Exception) -> bool:
    """Whether the same request may be answered if it is sent again."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in MAY_PASS
    return (
        isinstance(error, httpx2.TransportError) and not isinstance(error, _LASTING) and not certificate_refused(error)
    )


def pause(error: Exception, failed: int, cancelled: Callable[[], bool]) -> None:
    """Wait as long as the Hub asks for, else longer with each failure. Raises MergeCancelledError."""
    asked = asked_pause(error.response, Clock()) if isinstance(error, HfHubHTTPError) else None
    seconds = FIRST_PAUSE * 2 ** (failed - 1) if asked is None else min(asked, LONGEST_PAUSE)
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        stop_if(cancelled)
        time.sleep(min(left, POLL))
    stop_if(cancelled)


def stop_if(cancelled: Callable[[], bool]) -> None:
    """Raise MergeCancelledError if somebody asked to stop."""
    if cancelled():
        raise MergeCancelledError("stopped; nothing of it is visible, and what has been uploaded is not sent again")
