"""Git LFS uploads: the batch that hands out signed URLs, whole and in parts, and the check at the end.

Downloads do not pass here: clients of the Hub read through `/resolve/`.
"""

import hashlib
import re
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testhub.exchange import Answer, Call, Dropped, Refused, json_answer
from testhub.faults import Fault, damaged
from testhub.objects import File, chunks_of
from testhub.repositories import Repository
from testhub.resolve import check_signature

if TYPE_CHECKING:
    from testhub.hub import Hub

_SHA256 = re.compile(r"[0-9a-f]{64}")


def batch(hub: "Hub", call: Call, repository: Repository) -> Answer:
    asked = call.json()
    if asked.get("operation") != "upload" or asked.get("hash_algo", "sha256") != "sha256":
        raise Refused(422, "Only uploads by sha256 are offered here")
    transfers = asked.get("transfers", ["basic"])
    told = [_offer(hub, repository, each["oid"], each["size"], "multipart" in transfers) for each in asked["objects"]]
    transfer = "multipart" if any("chunk_size" in _upload(each).get("header", {}) for each in told) else "basic"
    return json_answer(
        {"transfer": transfer, "objects": told}, headers={"Content-Type": "application/vnd.git-lfs+json"}
    )


def put(hub: "Hub", call: Call, owner: str, sha256: str) -> Answer:
    """The whole object. What comes is stored under its own hash; whether that is the one promised, `verify` tells."""
    check_signature(hub, call)
    stored = hub.objects.add_lfs(_received(hub, call))
    _admit(hub, owner, stored, sha256)
    return Answer(200, {"ETag": f'"{stored.oid}"'})


def put_part(hub: "Hub", call: Call, owner: str, sha256: str, upload: str, number: str) -> Answer:
    """One part; it lies beside the objects until the upload is complete."""
    check_signature(hub, call)
    digest = hashlib.md5(usedforsecurity=False)
    with hub.objects.incoming() as out:
        try:
            for chunk in _received(hub, call):
                digest.update(chunk)
                out.write(chunk)
        except BaseException:
            Path(out.name).unlink()
            raise
    Path(out.name).replace(_part(hub, upload, int(number)))
    return Answer(200, {"ETag": f'"{digest.hexdigest()}"'})


def complete(hub: "Hub", call: Call, owner: str, sha256: str, upload: str) -> Answer:
    """Put the parts together, if each is what its sender was told it is. To say it twice does no harm."""
    check_signature(hub, call)
    if sha256 in _owner(hub, owner).lfs:
        return json_answer({"success": True})
    parts = sorted(call.json().get("parts", []), key=lambda part: part["partNumber"])
    paths = [_part(hub, upload, part["partNumber"]) for part in parts]
    for path, part in zip(paths, parts, strict=True):
        if not path.is_file() or part["etag"].strip('"') != _md5(path):
            raise Refused(400, "One or more of the specified parts could not be found")
    stored = hub.objects.add_lfs(chunk for path in paths for chunk in chunks_of(path))
    for path in paths:
        path.unlink()
    _admit(hub, owner, stored, sha256)
    return json_answer({"success": True})


def verify(hub: "Hub", call: Call, repository: Repository) -> Answer:
    asked = call.json()
    if asked["oid"] not in repository.lfs or hub.objects.size(asked["oid"]) != asked["size"]:
        raise Refused(400, "The uploaded object is not what was announced: its size or hash differs")
    return json_answer({"success": True})


def _admit(hub: "Hub", owner: str, stored: File, sha256: str) -> None:
    """The repository has the object from now on, if it is the one that was promised."""
    if stored.sha256 == sha256:
        _owner(hub, owner).lfs.add(sha256)


def _owner(hub: "Hub", name: str) -> Repository:
    if name not in hub.repositories:
        raise Refused(404, "The repository of this upload is gone")
    return hub.repositories[name]


def _offer(hub: "Hub", repository: Repository, sha256: str, size: int, in_parts: bool) -> dict[str, Any]:
    """How to upload one object; without actions if it is here already."""
    told: dict[str, Any] = {"oid": sha256, "size": size}
    if not _SHA256.fullmatch(sha256) or size < 0:
        return {**told, "error": {"code": 422, "message": "This is no sha256 or no size"}}
    if sha256 in repository.lfs and hub.objects.size(sha256) == size:
        return told
    path = f"/upload/{repository.name}/{sha256}"
    verify = {"href": f"{hub.endpoint}/{repository.name}.git/info/lfs/objects/verify"}
    if in_parts and hub.part_size is not None and size > hub.part_size:
        path = f"{path}/{next(hub.uploads)}"  # two clients may send the same object at once
        numbers = range(1, ceil(size / hub.part_size) + 1)
        header = {f"{number:05}": hub.signed(f"{path}/{number}") for number in numbers}
        href = f"{hub.endpoint}{hub.signer.sign(f'{path}/complete')}"
        upload = {"href": href, "header": {"chunk_size": str(hub.part_size), **header}}
    else:
        upload = {"href": hub.signed(path)}
    return {**told, "actions": {"upload": upload, "verify": verify}}


def _upload(told: dict[str, Any]) -> dict[str, Any]:
    return told.get("actions", {}).get("upload", {})


def _received(hub: "Hub", call: Call) -> Iterator[bytes]:
    """The body as it comes, broken off or damaged where a fault says so."""
    length = call.body.length or 0

    def breaks(fault: Fault) -> bool:
        return (fault.after or 0) < length

    broken = hub.faults.take(call.record, "broken_upload", suits=breaks)
    damage = hub.faults.take(call.record, "damaged_upload", suits=lambda fault: fault.offset < length)
    limit = length if broken is None else length // 2 if broken.after is None else broken.after
    seen = 0
    for piece in damaged(call.body.pieces(), damage):
        seen += len(piece)
        if broken is not None and seen >= limit:
            raise Dropped
        yield piece


def _part(hub: "Hub", upload: str, number: int) -> Path:
    return hub.objects.parts / f"{upload}-{number}"


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in chunks_of(path):
        digest.update(chunk)
    return digest.hexdigest()
