"""Discussions and pull requests over HTTP."""

from typing import TYPE_CHECKING, Any

from testhub.exchange import Answer, Call, Refused, json_answer
from testhub.repositories import Conflict, Discussion, Event, Repository

if TYPE_CHECKING:
    from testhub.hub import Hub

_PAGE = 10


def listing(hub: "Hub", call: Call, repository: Repository) -> Answer:
    wanted, status, author = call.option("type"), call.option("status"), call.option("author")
    kinds = {"pull_request": (True,), "discussion": (False,)}.get(wanted or "all", (True, False))
    open_now = {"open": (True,), "closed": (False,)}.get(status or "all", (True, False))
    found = [
        each
        for each in reversed(repository.discussions)
        if (each.base is not None) in kinds
        and (each.status in ("open", "draft")) in open_now
        and author in (None, each.author)
    ]
    start = int(call.option("p") or 0) * _PAGE
    told = [_told(each, repository) for each in found[start : start + _PAGE]]
    return json_answer({"discussions": told, "count": len(found), "start": start})


def create(hub: "Hub", call: Call, repository: Repository) -> Answer:
    asked = call.json()
    if len(asked.get("title", "")) < 3:
        raise Refused(400, "The title must have at least 3 characters")
    base = repository.head if asked.get("pullRequest") else None
    opened = repository.open_discussion(asked["title"], asked.get("description", ""), call.user, base)
    return json_answer({"num": opened.number, "pullRequest": base is not None})


def details(hub: "Hub", call: Call, repository: Repository, number: str) -> Answer:
    found = _found(repository, number)
    told = {**_told(found, repository), "events": [_event(found, at) for at in range(len(found.events))]}
    if found.base is not None:
        merged = {"mergeCommitId": found.merge_commit} if found.merge_commit else {}
        told |= {"changes": {"base": f"refs/heads/{found.target}", **merged}, "filesWithConflicts": [], "diff": ""}
    return json_answer(told)


def comment(hub: "Hub", call: Call, repository: Repository, number: str) -> Answer:
    found = _found(repository, number)
    repository.comment(found, call.json()["comment"], call.user)
    return json_answer({"newMessage": _event(found, -1)})


def title(hub: "Hub", call: Call, repository: Repository, number: str) -> Answer:
    found = _found(repository, number)
    repository.rename(found, call.json()["title"], call.user)
    return json_answer({"newTitle": _event(found, -1)})


def status(hub: "Hub", call: Call, repository: Repository, number: str) -> Answer:
    found, asked = _found(repository, number), call.json()
    if found.status == "merged":
        raise Refused(400, "This pull request is merged")
    if asked.get("comment"):
        repository.comment(found, asked["comment"], call.user)
    repository.set_status(found, asked["status"], call.user)
    return json_answer({"newStatus": _event(found, -1)})


def merge(hub: "Hub", call: Call, repository: Repository, number: str) -> Answer:
    found, asked = _found(repository, number), call.json()
    if found.base is None or found.status not in ("open", "draft"):
        raise Refused(400, "Only an open pull request can be merged")
    if asked.get("comment"):
        repository.comment(found, asked["comment"], call.user)
    try:
        made = repository.merge(found, call.user)
    except Conflict:
        raise Refused(409, "The branches have conflicting changes") from None
    return json_answer({"success": True, "mergeCommitId": made.oid})


def _found(repository: Repository, number: str) -> Discussion:
    at = int(number) - 1
    if not 0 <= at < len(repository.discussions):
        raise Refused(404, "Discussion not found")
    return repository.discussions[at]


def _told(discussion: Discussion, repository: Repository) -> dict[str, Any]:
    return {
        "num": discussion.number,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": discussion.date,
        "status": discussion.status,
        "isPullRequest": discussion.base is not None,
        "repo": {"name": repository.id, "type": repository.kind},
    }


def _event(discussion: Discussion, at: int) -> dict[str, Any]:
    event: Event = discussion.events[at]
    number = at % len(discussion.events)
    return {
        "id": f"{discussion.number:012x}{number:012x}",
        "type": event.kind,
        "createdAt": event.date,
        "author": {"name": event.author},
        "data": event.data,
    }
