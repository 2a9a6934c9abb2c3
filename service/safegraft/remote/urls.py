"""Opens a model by its URL: the scheme decides who reads it. On a server a policy says what may be read at all."""

from safegraft.errors import CheckpointError, Problem
from safegraft.remote.http_ranges import Clock, Patience
from safegraft.remote.store import Store
from safegraft.remote.url_names import shown_url
from safegraft.remote.url_policy import WEB, UrlPolicy

__all__ = ["UrlPolicy", "open_url", "shown_url"]


def open_url(
    url: str, policy: UrlPolicy | None = None, *, patience: Patience | None = None, clock: Clock | None = None
) -> Store:
    """The files of a "folder" below a URL.

    policy: None: anything goes, which is right for whoever sits at this machine and for nobody else.

    Raises CheckpointError when it may not be read, or nothing is there; UsageError when a package is missing.
    """
    from safegraft.remote.object_store import PACKAGES

    scheme, separator, _ = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise CheckpointError(Problem(url, "is no URL: it has no scheme and host"))
    if scheme not in (*WEB, *PACKAGES):
        known = ", ".join(f"{one}://" for one in ("https", "http", "s3", "gs", "az"))
        raise CheckpointError(Problem(shown_url(url), f"cannot be read: {scheme}:// is not one of {known}"))
    if policy is not None:
        url = policy.admitted(url)
    if scheme in WEB:
        return _web(url, policy, patience, clock)
    return _object_store(url, patience, clock)


def _web(url: str, policy: UrlPolicy | None, patience: Patience | None, clock: Clock | None) -> Store:
    from safegraft.remote.http_folder import HttpFolder

    if policy is None:
        return HttpFolder(url, patience=patience, clock=clock)
    return HttpFolder(url, may_visit=policy.admit_request, transport=policy.transport(), patience=patience, clock=clock)


def _object_store(url: str, patience: Patience | None, clock: Clock | None) -> Store:
    from safegraft.remote.object_store import ObjectStore

    for sign, what in (("?", "a query"), ("#", "a fragment"), ("::", "a chain of stores")):
        if sign in url:
            raise CheckpointError(Problem(shown_url(url), f"cannot be read: {what} has no place in it"))
    if ":" in url.partition("://")[2].partition("/")[0].rpartition("@")[0]:
        message = (
            "cannot be read: credentials do not belong into it; the store's library takes them from the environment"
        )
        raise CheckpointError(Problem(shown_url(url), message))
    return ObjectStore(url, patience=patience, clock=clock)
