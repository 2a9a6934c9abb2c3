"""Files to read: `/resolve/` and `/raw/` on the Hub, the content of LFS objects on its CDN; ranges and conditions.

A file in git is answered by the Hub itself. An LFS object is answered with 302 to a signed URL at another host name,
with the object's hash and size in headers, as on the real Hub.
"""

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from testhub.exchange import Answer, Call, Refused, Slice, no_entry
from testhub.faults import Fault
from testhub.objects import File, pointer
from testhub.repositories import Repository

if TYPE_CHECKING:
    from testhub.hub import Hub

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def resolve(hub: "Hub", call: Call, repository: Repository, rev: str, path: str) -> Answer:
    commit = hub.revision(repository, rev)
    file = commit.files.get(path)
    if file is None:
        raise no_entry(commit.oid)
    headers = {"X-Repo-Commit": commit.oid, "Content-Disposition": _disposition(path)}
    if file.sha256 is None:
        return _serve(hub, call, file, headers)
    headers["X-Linked-Etag"] = f'"{file.sha256}"'
    headers["X-Linked-Size"] = str(file.size)
    headers["Location"] = hub.signed(f"/cdn/{repository.name}/{file.sha256}/{quote(path)}")
    headers["ETag"] = f'"{file.oid}"'
    headers["Accept-Ranges"] = "bytes"
    return Answer(302, headers)


def raw(hub: "Hub", call: Call, repository: Repository, rev: str, path: str) -> Answer:
    """What git holds: the pointer in place of an LFS object."""
    commit = hub.revision(repository, rev)
    file = commit.files.get(path)
    if file is None:
        raise no_entry(commit.oid)
    headers = {"X-Repo-Commit": commit.oid, "Content-Type": "text/plain; charset=utf-8", "ETag": f'"{file.oid}"'}
    if file.sha256 is not None:
        return Answer(200, headers, pointer(file.sha256, file.size))
    return _serve(hub, call, file, headers)


def content(hub: "Hub", call: Call, owner: str, sha256: str, path: str) -> Answer:
    """An LFS object, to whoever holds a valid URL; no account is asked for."""
    check_signature(hub, call)
    size = hub.objects.size(sha256)
    if size is None:
        raise Refused(404, "NoSuchKey")
    return _serve(hub, call, File("", size, sha256), {"Content-Disposition": _disposition(unquote(path))})


def check_signature(hub: "Hub", call: Call) -> None:
    """Raises: Refused: the URL is unsigned, altered, or its time is over."""
    if not hub.signer.valid(call.path, call.query) or hub.faults.take(call.record, "expired"):
        raise Refused(403, "Request has expired")


def _serve(hub: "Hub", call: Call, file: File, headers: dict[str, str]) -> Answer:
    headers = {"Content-Type": "application/octet-stream", "ETag": f'"{file.etag}"', **headers}
    headers["Accept-Ranges"] = "bytes"
    if not _holds(call.headers.get("If-Match"), file, absent=True):
        raise Refused(412, "At least one of the pre-conditions you specified did not hold")
    if _holds(call.headers.get("If-None-Match"), file, absent=False):
        return Answer(304, headers)
    stored = hub.objects.path(file)
    asked = call.headers.get("Range") if _holds(call.headers.get("If-Range"), file, absent=True) else None
    bounds = _bounds(asked, file.size)
    if bounds is None or hub.faults.take(call.record, "ignored_range"):
        return Answer(200, headers, Slice(stored, 0, file.size))
    start, stop = bounds
    if start >= stop:
        raise Refused(416, "The requested range is not satisfiable", Content_Range=f"bytes */{file.size}")
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"

    def shortens(fault: Fault) -> bool:
        return (fault.after or 0) < stop - start

    short = hub.faults.take(call.record, "truncated", suits=shortens)
    return Answer(206, headers, Slice(stored, start, start + (short.after or 0) if short else stop))


def _bounds(asked: str | None, size: int) -> tuple[int, int] | None:
    """The bytes asked for, empty if there are none; None for the whole file (also for what is no single range)."""
    match = _RANGE.fullmatch(asked.replace(" ", "")) if asked else None
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1 if last else size)


def _holds(condition: str | None, file: File, *, absent: bool) -> bool:
    """Whether a list of ETags names this file."""
    if condition is None:
        return absent
    named = [each.strip().removeprefix("W/").strip('"') for each in condition.split(",")]
    return "*" in named or file.etag in named


def _disposition(path: str) -> str:
    name = quote(path.rpartition("/")[2])
    return f"inline; filename*=UTF-8''{name}; filename=\"{name}\";"
