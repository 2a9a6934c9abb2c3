"""The Hub's API about accounts, repositories, trees and refs: all but commits, uploads, downloads and discussions."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from testhub import describe
from testhub.exchange import Answer, Call, Refused, json_answer, no_entry, no_repository, no_revision
from testhub.repositories import Commit, Repository, folders, tree_oid

if TYPE_CHECKING:
    from testhub.hub import Hub

_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def whoami(hub: "Hub", call: Call) -> Answer:
    account = call.account
    assert account is not None
    token = {"displayName": account.role, "role": account.role, "createdAt": "2026-01-01T00:00:00.000Z"}
    return json_answer(
        {
            "type": "user",
            "id": account.user,
            "name": account.user,
            "fullname": account.user,
            "isPro": False,
            "orgs": [{"type": "org", "name": org, "fullname": org, "roleInOrg": "admin"} for org in account.orgs],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def validate_yaml(hub: "Hub", call: Call) -> Answer:
    errors, warnings = describe.card_problems(call.json().get("content", ""))
    told = {"errors": [{"message": each} for each in errors], "warnings": [{"message": each} for each in warnings]}
    return json_answer(told, 400 if errors else 200)


def create(hub: "Hub", call: Call) -> Answer:
    asked = call.json()
    name = _name_in(asked, call)
    _may_own(call, name)
    try:
        hub.create(name, call.user, private=_is_private(asked))
    except FileExistsError:
        url = f"{hub.endpoint}/{name}"
        told = {"error": "You already created this model repo", "url": url, "name": name, "id": name}
        return json_answer(told, 409, {"X-Error-Message": told["error"]})
    return json_answer({"url": f"{hub.endpoint}/{name}", "name": name, "id": name})


def delete(hub: "Hub", call: Call) -> Answer:
    name = _name_in(call.json(), call)
    _may_own(call, name)
    with hub.lock:
        if hub.repositories.pop(name, None) is None:
            raise no_repository(call.account)
    return json_answer({})


def move(hub: "Hub", call: Call) -> Answer:
    asked = call.json()
    prefix = _PREFIXES[asked.get("type", "model")]
    old, new = f"{prefix}{asked['fromRepo']}", f"{prefix}{asked['toRepo']}"
    _may_own(call, old)
    _may_own(call, new)
    with hub.lock:
        if old not in hub.repositories:
            raise no_repository(call.account)
        if new in hub.repositories:
            raise Refused(409, "A repository with this name exists already")
        repository = hub.repositories[new] = hub.repositories.pop(old)
        repository.name = new
    return json_answer({})


def settings(hub: "Hub", call: Call, repository: Repository) -> Answer:
    asked = call.json()
    with repository.lock:
        if "private" in asked or "visibility" in asked:
            repository.private = _is_private(asked)
        if "gated" in asked:
            repository.gated = asked["gated"] or ""
    return json_answer({"private": repository.private, "gated": repository.gated or False})


def info(hub: "Hub", call: Call, repository: Repository, rev: str = "main") -> Answer:
    told = describe.info(repository, hub.revision(repository, rev), hub.objects, call.flag("blobs"))
    wanted = call.options("expand")
    if wanted:
        told = {key: value for key, value in told.items() if key in (*wanted, "_id", "id")}
    return json_answer(told)


def auth_check(hub: "Hub", call: Call, repository: Repository) -> Answer:
    """The right that the route asks for is all there is to check."""
    return json_answer({})


def tree(hub: "Hub", call: Call, repository: Repository, rev: str, path: str = "") -> Answer:
    commit = hub.revision(repository, rev)
    path = path.strip("/")
    files = commit.files if not path else folders(commit.files).get(path)
    if files is None:
        raise no_entry(commit.oid)
    prefix = f"{path}/" if path else ""
    entries: list[dict[str, Any]] = []
    for name, below in folders(files).items():
        entries.append({"type": "directory", "oid": tree_oid(below), "size": 0, "path": prefix + name})
    entries += [describe.entry(prefix + name, file) for name, file in files.items()]
    if not call.flag("recursive"):
        entries = [each for each in entries if "/" not in each["path"].removeprefix(prefix)]
    if call.flag("expand"):
        entries = [_expanded(each, repository, commit) for each in entries]
    return _page(hub, call, sorted(entries, key=lambda each: each["path"]))


def paths_info(hub: "Hub", call: Call, repository: Repository, rev: str) -> Answer:
    commit = hub.revision(repository, rev)
    asked = call.form()
    known = folders(commit.files)
    told: list[dict[str, Any]] = []
    for path in asked.get("paths", []):
        if path in commit.files:
            told.append(describe.entry(path, commit.files[path]))
        elif path in known:
            told.append({"type": "directory", "oid": tree_oid(known[path]), "size": 0, "path": path})
    if asked.get("expand", ["false"])[0].lower() == "true":
        told = [_expanded(each, repository, commit) for each in told]
    return json_answer(told)


def refs(hub: "Hub", call: Call, repository: Repository) -> Answer:
    with repository.lock:
        told = {
            "branches": [_ref(name, f"refs/heads/{name}", oid) for name, oid in repository.branches.items()],
            "converts": [],
            "tags": [_ref(name, f"refs/tags/{name}", oid) for name, oid in repository.tags.items()],
        }
        if call.flag("include_prs"):
            told["pullRequests"] = [_ref(ref, ref, oid) for ref, oid in repository.pull_heads.items()]
    return json_answer(told)


def commits(hub: "Hub", call: Call, repository: Repository, rev: str) -> Answer:
    history = repository.history(hub.revision(repository, rev).oid)
    return _page(hub, call, [describe.described(each) for each in history])


def create_branch(hub: "Hub", call: Call, repository: Repository, rev: str) -> Answer:
    start = hub.revision(repository, call.json().get("startingPoint", "main")).oid
    with repository.lock:
        if rev in repository.branches:
            raise Refused(409, f"Reference already exists: refs/heads/{rev}")
        repository.branches[rev] = start
    return json_answer({})


def delete_branch(hub: "Hub", call: Call, repository: Repository, rev: str) -> Answer:
    if rev == "main":
        raise Refused(403, "The main branch cannot be deleted")
    with repository.lock:
        if repository.branches.pop(rev, None) is None:
            raise no_revision(rev)
    return json_answer({})


def create_tag(hub: "Hub", call: Call, repository: Repository, rev: str) -> Answer:
    tag = call.json()["tag"]
    target = hub.revision(repository, rev).oid
    with repository.lock:
        if tag in repository.tags:
            raise Refused(409, f"Reference already exists: refs/tags/{tag}")
        repository.tags[tag] = target
    return json_answer({})


def delete_tag(hub: "Hub", call: Call, repository: Repository, rev: str) -> Answer:
    with repository.lock:
        if repository.tags.pop(rev, None) is None:
            raise no_revision(rev)
    return json_answer({})


def no_xet(hub: "Hub", call: Call, repository: Repository, rev: str) -> Answer:
    raise Refused(404, "This Hub has no Xet storage")


def _page(hub: "Hub", call: Call, entries: list[dict[str, Any]]) -> Answer:
    """One page of a listing, with a link to the next."""
    start = int(call.option("cursor") or 0)
    stop = start + hub.page_size
    headers = {}
    if stop < len(entries):
        kept = {name: call.option(name) for name in ("recursive", "expand") if call.option(name) is not None}
        query = urlencode({**kept, "cursor": stop})
        headers["Link"] = f'<{hub.endpoint}{call.path}?{query}>; rel="next"'
    return json_answer(entries[start:stop], headers=headers)


def _expanded(told: dict[str, Any], repository: Repository, commit: Commit) -> dict[str, Any]:
    """With the commit that touched it last."""
    path = told["path"]
    history = repository.history(commit.oid)
    for newer, older in zip(history, [*history[1:], None], strict=True):
        if older is None or _below(newer, path) != _below(older, path):
            return {**told, "lastCommit": describe.last_commit(newer)}
    return told


def _below(commit: Commit, path: str) -> dict[str, str]:
    return {name: file.etag for name, file in commit.files.items() if name == path or name.startswith(f"{path}/")}


def _ref(name: str, ref: str, oid: str) -> dict[str, str]:
    return {"name": name, "ref": ref, "targetCommit": oid}


def _is_private(asked: dict[str, Any]) -> bool:
    return asked.get("visibility", "private" if asked.get("private") else "public") == "private"


def _name_in(asked: dict[str, Any], call: Call) -> str:
    return f"{_PREFIXES[asked.get('type') or 'model']}{asked.get('organization') or call.user}/{asked['name']}"


def _may_own(call: Call, name: str) -> None:
    """Raises: Refused: this account may not create, move or delete there."""
    assert call.account is not None
    namespace = name.split("/")[-2]
    if call.account.role != "write":
        raise Refused(403, "Forbidden: you must use a write token to do this.")
    if not call.account.owns(namespace):
        raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{quote(namespace)}"')
