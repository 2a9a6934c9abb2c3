"""A Hugging Face Hub in a thread, for tests and demonstrations: real clients talk to it, and it fails when told to.

    with Hub.start() as hub:
        point_at(hub, monkeypatch, tmp_path / "cache")  # a subprocess: env={**os.environ, **hub.environment()}
        commit = hub.add_model("org/name", folder)
        hub.faults.add(Fault.unavailable(times=3, match=r"/resolve/"))
        ...
        assert hub.bytes_sent(r"model-00001") < 10_000

Or as a process: `PYTHONPATH=tests/support python -m testhub --port 0 --model org/name=PATH`.

What it speaks (as huggingface_hub 2.4 and transformers 5.23 ask for it): whoami, validate-yaml; create, delete, move
and set up repositories (models, datasets, spaces); info, tree in pages, paths-info, refs, commits; branches and tags;
preupload, commit (files, LFS files, deletions, `parentCommit`, `create_pr`); discussions and pull requests up to their
merge; LFS uploads, whole and in parts, with verification; `/resolve/` and `/raw/` with ranges and conditions, LFS
content by a redirect to a signed, expiring URL on another host name; tokens that may write, only read, or belong to a
stranger; private and gated repositories. Ids of blobs and trees are those of git; no id depends on a clock.

What it does not: Xet (`xet-*-token` is 404, so set HF_HUB_DISABLE_XET as `point_at` and `environment` do, or hand the
client open files, which it uploads by LFS), the search and listing of repositories, names without a namespace, spaces
that run, collections, webhooks, jobs, requests for access (grant it with `repository(name).granted.add(user)`), LFS
downloads by the batch, squashing, compression, and the check of licence names in cards. Repositories live in memory and
end with the process; only their content is on disk. A pull request conflicts by file, not by line.

Modules: `hub` (accounts, repositories, rights), `server` (connections, faults in answers, records), `routes` (endpoint
by endpoint), `api`, `commits`, `lfs`, `resolve`, `discussions` (the endpoints), `repositories`, `objects`, `attributes`
(git's side), `describe` (JSON and model cards), `exchange` (request, answer, refusal), `signing`, `accounts`, `faults`,
`traffic`, `client` (pointing huggingface_hub here).
"""

from testhub.client import point_at
from testhub.faults import Fault, Faults
from testhub.hub import Hub
from testhub.traffic import Request

__all__ = ["Fault", "Faults", "Hub", "Request", "point_at"]
