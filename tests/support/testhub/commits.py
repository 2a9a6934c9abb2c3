"""Commits over HTTP: what goes to LFS (`preupload`), and the commit itself, one JSON object a line."""

import base64
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from testhub.attributes import is_lfs
from testhub.exchange import Answer, Call, Refused, json_answer, no_revision
from testhub.objects import File, lfs_file
from testhub.repositories import Commit, Repository, StaleParent

if TYPE_CHECKING:
    from testhub.hub import Hub

Change = Callable[[dict[str, File]], None]
_STALE = "A commit has happened since. Please refresh and try again."


def preupload(hub: "Hub", call: Call, repository: Repository, rev: str) -> Answer:
    commit = hub.revision(repository, rev)
    attributes = _attributes(hub, commit)
    told: list[dict[str, Any]] = []
    for asked in call.json().get("files", []):
        path, sample = asked["path"], base64.b64decode(asked["sample"])
        mode = "lfs" if is_lfs(path, asked["size"], sample, attributes) else "regular"
        there = commit.files.get(path)
        oid = {"oid": there.etag} if there else {}
        told.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
    return json_answer({"files": told, "commitOid": commit.oid})


def commit(hub: "Hub", call: Call, repository: Repository, rev: str) -> Answer:
    lines = call.lines()
    header = _parsed(next(lines, b""))
    if header.get("key") != "header" or not header["value"].get("summary"):
        raise Refused(400, "The first line must be a header with a summary")
    changes = [_change(hub, repository, _parsed(line)) for line in lines if line.strip()]

    def apply(files: dict[str, File]) -> None:
        for change in changes:
            change(files)

    if hub.faults.take(call.record, "stale_parent"):
        _sneak_in(hub, repository, rev)
    value = header["value"]
    message, parent = value.get("description", ""), value.get("parentCommit")
    if call.flag("create_pr"):
        return _propose(hub, call, repository, rev, apply, value["summary"], message, parent)
    if not hub.may_write(call, repository, rev):
        raise Refused(403, "Forbidden: you have no right to write to this repository.")
    try:
        made = repository.commit(rev, apply, value["summary"], message, author=call.user, parent=parent)
    except KeyError:
        raise no_revision(rev) from None
    except StaleParent:
        raise Refused(412, _STALE) from None
    return json_answer({"success": True, "commitUrl": _url(hub, repository, made), "commitOid": made.oid})


def _propose(
    hub: "Hub",
    call: Call,
    repository: Repository,
    rev: str,
    apply: Change,
    title: str,
    message: str,
    parent: str | None,
) -> Answer:
    """The commit as a pull request against a branch, upon the parent that was named."""
    with repository.lock:
        if rev not in repository.branches:
            raise no_revision(rev)
        base = hub.revision(repository, parent or rev).oid
        pull = repository.open_discussion(title, message, call.user, base, rev)
        pull.status = "open"
        made = repository.commit(pull.ref, apply, title, message, author=call.user)
    return json_answer(
        {
            "success": True,
            "commitUrl": _url(hub, repository, made),
            "commitOid": made.oid,
            "pullRequestUrl": f"{hub.endpoint}/{repository.name}/discussions/{pull.number}",
        }
    )


def _change(hub: "Hub", repository: Repository, line: dict[str, Any]) -> Change:
    """What a line does to a tree.

    Raises:
        Refused: it is not understood, or names an LFS object that was not uploaded here.
    """
    key, value = line.get("key"), line.get("value", {})
    path = _checked(value.get("path", ""))
    if key == "file":
        return _put(path, hub.objects.add_bytes(base64.b64decode(value["content"])))
    if key == "lfsFile":
        size = hub.objects.size(value["oid"]) if value["oid"] in repository.lfs else None
        if size is None or value.get("size", size) != size:
            raise Refused(400, f"LFS pointer pointed to a file that does not exist: {path}")
        return _put(path, lfs_file(value["oid"], size))
    if key == "deletedFile":
        return _delete(path, folder=False)
    if key == "deletedFolder":
        return _delete(path.rstrip("/"), folder=True)
    raise Refused(400, f"Unknown operation: {key}")


def _put(path: str, file: File) -> Change:
    def put(files: dict[str, File]) -> None:
        if any(each.startswith(f"{path}/") or path.startswith(f"{each}/") for each in files):
            raise Refused(400, f"{path} is a file and a folder at once")
        files[path] = file

    return put


def _delete(path: str, *, folder: bool) -> Change:
    def delete(files: dict[str, File]) -> None:
        gone = [each for each in files if (each.startswith(f"{path}/") if folder else each == path)]
        if not gone:
            raise Refused(
                404, f"A {'folder' if folder else 'file'} with the name {path} does not exist", "EntryNotFound"
            )
        for each in gone:
            del files[each]

    return delete


def _checked(path: str) -> str:
    """A path that stays within the repository."""
    parts = path.rstrip("/").split("/")
    if not path or any(part in ("", ".", "..", ".git") for part in parts):
        raise Refused(400, f"Invalid path: {path!r}")
    return path


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("value", {}), dict):
        raise Refused(400, "Each line must be a JSON object with a key and a value")
    return value


def _attributes(hub: "Hub", commit: Commit) -> bytes:
    file = commit.files.get(".gitattributes")
    return hub.objects.path(file).read_bytes() if file else b""


def _sneak_in(hub: "Hub", repository: Repository, rev: str) -> None:
    """Somebody else's commit; each brings another content, so that no two are alike."""
    with repository.lock:
        words = f"commit {len(repository.history(hub.revision(repository, rev).oid))}\n".encode()
        file = hub.objects.add_bytes(words)
        repository.commit(rev, lambda files: files.update({"another.txt": file}), "Another commit", author="another")


def _url(hub: "Hub", repository: Repository, made: Commit) -> str:
    return f"{hub.endpoint}/{repository.name}/commit/{made.oid}"
