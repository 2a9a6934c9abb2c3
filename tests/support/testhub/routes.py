"""Which endpoint answers which request, and what right it asks for.

Paths are matched as they are sent, still quoted: `{rev}` is one segment even if the revision has slashes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from testhub import api, commits, discussions, lfs, resolve

READ, CONTENT, PROPOSE, WRITE, SIGNED_IN, NONE = "read", "content", "propose", "write", "signed in", ""
"""Rights: see a repository; read its files (gated ones too); open pull requests; change it; have a token; none."""

_PARTS = {
    "{api}": r"/api/(?P<repo>(?:models|datasets|spaces)/[^/]+/[^/]+)",
    "{site}": r"/(?P<repo>(?:(?:datasets|spaces)/)?[^/]+/[^/]+?)",
    "{rev}": r"(?P<rev>refs/(?:pr|convert)/[^/]+|[^/]+)",
    "{sha256}": r"(?P<sha256>[0-9a-f]{64})",
    "{path}": r"(?P<path>.+)",
    "{number}": r"(?P<number>\d+)",
    "{upload}": r"(?P<upload>\d+)",
    "{owner}": r"(?P<owner>.+?)",
}


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint."""

    method: str
    pattern: "re.Pattern[str]"
    right: str
    answer: Callable[..., Any]


def route(method: str, template: str, right: str, answer: Callable[..., Any]) -> Route:
    parts = re.split(r"(\{\w+\})", template)
    return Route(method, re.compile("".join(_PARTS.get(part, re.escape(part)) for part in parts)), right, answer)


ROUTES = [
    route("GET", "/api/whoami-v2", SIGNED_IN, api.whoami),
    route("POST", "/api/validate-yaml", NONE, api.validate_yaml),
    route("POST", "/api/repos/create", SIGNED_IN, api.create),
    route("DELETE", "/api/repos/delete", SIGNED_IN, api.delete),
    route("POST", "/api/repos/move", SIGNED_IN, api.move),
    route("GET", "{api}", READ, api.info),
    route("GET", "{api}/revision/{rev}", READ, api.info),
    route("GET", "{api}/auth-check", CONTENT, api.auth_check),
    route("GET", "{api}/auth-check/write", WRITE, api.auth_check),
    route("PUT", "{api}/settings", WRITE, api.settings),
    route("PATCH", "{api}/settings", WRITE, api.settings),
    route("GET", "{api}/tree/{rev}", READ, api.tree),
    route("GET", "{api}/tree/{rev}/{path}", READ, api.tree),
    route("POST", "{api}/paths-info/{rev}", READ, api.paths_info),
    route("GET", "{api}/refs", READ, api.refs),
    route("GET", "{api}/commits/{rev}", READ, api.commits),
    route("POST", "{api}/branch/{rev}", WRITE, api.create_branch),
    route("DELETE", "{api}/branch/{rev}", WRITE, api.delete_branch),
    route("POST", "{api}/tag/{rev}", WRITE, api.create_tag),
    route("DELETE", "{api}/tag/{rev}", WRITE, api.delete_tag),
    route("GET", "{api}/xet-read-token/{rev}", READ, api.no_xet),
    route("GET", "{api}/xet-write-token/{rev}", READ, api.no_xet),
    route("POST", "{api}/preupload/{rev}", PROPOSE, commits.preupload),
    route("POST", "{api}/commit/{rev}", PROPOSE, commits.commit),
    route("POST", "{site}.git/info/lfs/objects/batch", PROPOSE, lfs.batch),
    route("POST", "{site}.git/info/lfs/objects/verify", PROPOSE, lfs.verify),
    route("PUT", "/upload/{owner}/{sha256}", NONE, lfs.put),
    route("PUT", "/upload/{owner}/{sha256}/{upload}/{number}", NONE, lfs.put_part),
    route("POST", "/upload/{owner}/{sha256}/{upload}/complete", NONE, lfs.complete),
    route("GET", "{api}/discussions", READ, discussions.listing),
    route("POST", "{api}/discussions", PROPOSE, discussions.create),
    route("GET", "{api}/discussions/{number}", READ, discussions.details),
    route("POST", "{api}/discussions/{number}/comment", PROPOSE, discussions.comment),
    route("POST", "{api}/discussions/{number}/title", WRITE, discussions.title),
    route("POST", "{api}/discussions/{number}/status", WRITE, discussions.status),
    route("POST", "{api}/discussions/{number}/merge", WRITE, discussions.merge),
    route("GET", "{site}/resolve/{rev}/{path}", CONTENT, resolve.resolve),
    route("GET", "{site}/raw/{rev}/{path}", CONTENT, resolve.raw),
    route("GET", "/cdn/{owner}/{sha256}/{path}", NONE, resolve.content),
]
