"""The Hub itself: accounts, repositories, what can be set; how a request finds its endpoint and its right to it."""

import itertools
import re
import shutil
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote

from testhub import routes
from testhub.accounts import Account, admitted, sees
from testhub.attributes import is_lfs
from testhub.exchange import Answer, Call, Refused, gated_off, no_repository, no_revision
from testhub.faults import Faults
from testhub.objects import File, Objects, chunks_of
from testhub.repositories import Commit, Repository
from testhub.server import Server
from testhub.signing import Signer
from testhub.traffic import Traffic

_NO_NAME = re.compile(r"/api/(models|datasets|spaces)/[^/]+(/revision/[^/]+)?|/[^/]+/resolve/.*")
_ON_CDN = re.compile(r"/cdn/|/upload/(?!.*/complete$)")


class Hub:
    """A running Hub: `with Hub.start() as hub`.

    `endpoint` is its address. `token` may write (user `tester`, organisations `org` and `team`), `read_token` may read
    what `tester` may, `stranger_token` belongs to a user without rights here. `part_size` (bytes, None: never) is from
    where uploads come in parts, `page_size` how many entries a listing has, `signer.lifetime` how long (seconds) links
    to the CDN are good for; all can be changed at any time, as can `faults`.
    """

    def __init__(
        self, folder: Path | None, faults: Faults | None, *, user: str, token: str, orgs: tuple[str, ...], port: int
    ) -> None:
        self.cdn_host = "127.0.0.1"
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="testhub-")) if folder is None else folder
        self.objects = Objects(self.folder)
        self.faults = faults if faults is not None else Faults()
        self.traffic = Traffic()
        self.signer = Signer()
        self.token, self.read_token, self.stranger_token = token, f"{token}_read_only", f"{token}_of_a_stranger"
        self.accounts = {
            account.token: account
            for account in (
                Account(user, self.token, orgs=orgs),
                Account(user, self.read_token, "read", orgs),
                Account("stranger", self.stranger_token),
            )
        }
        self.user = user
        self.part_size: int | None = None
        self.page_size = 1000
        self.uploads = itertools.count(1)
        self.failures: list[str] = []
        self.repositories: dict[str, Repository] = {}
        self.lock = threading.Lock()
        self._server = Server((self.cdn_host, port), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="testhub", daemon=True)

    @classmethod
    def start(
        cls,
        folder: Path | None = None,
        faults: Faults | None = None,
        *,
        user: str = "tester",
        token: str = "hf_testhub",
        orgs: tuple[str, ...] = ("org", "team"),
        port: int = 0,
    ) -> "Hub":
        """Start one, its content under `folder` (None: a temporary one, removed at the end)."""
        hub = cls(folder, faults, user=user, token=token, orgs=orgs, port=port)
        hub._thread.start()
        return hub

    def stop(self) -> None:
        """Close every connection and remove the temporary folder."""
        self._server.stop()
        self._thread.join()
        if self._temporary:
            shutil.rmtree(self.folder)

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        if self.failures and error is None:
            raise RuntimeError("the test Hub itself failed:\n" + "\n".join(self.failures))

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def endpoint(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def cdn(self) -> str:
        """The same port under another host name: clients must not carry tokens and headers across."""
        return f"http://{self.cdn_host}:{self.port}"

    def environment(self, home: Path | None = None) -> dict[str, str]:
        """For a subprocess: what points huggingface_hub here, with the token that may write (and with another home)."""
        homes = {} if home is None else {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
        return homes | {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def repository(self, name: str) -> Repository:
        """`org/name`, or `datasets/org/name`.

        Raises:
            KeyError: there is none.
        """
        return self.repositories[name]

    def create(self, name: str, author: str, *, private: bool = False, gated: str = "") -> Repository:
        """A repository with its first commit.

        Raises:
            FileExistsError: there is one.
        """
        with self.lock:
            if name in self.repositories:
                raise FileExistsError(name)
            made = self.repositories[name] = Repository(name, self.objects, author, private=private, gated=gated)
            return made

    def add_model(
        self,
        name: str,
        folder: Path,
        *,
        private: bool = False,
        gated: bool = False,
        card: str | None = None,
        message: str = "Add model",
        branch: str = "main",
    ) -> str:
        """Commit the files of a folder, upon what the repository has; returns the commit's id."""
        if name not in self.repositories:
            self.create(name, self.user, private=private, gated="manual" if gated else "")
        repository = self.repositories[name]
        files = {
            path.relative_to(folder).as_posix(): self._stored(path, repository)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        if card is not None:
            files["README.md"] = self.objects.add_bytes(card.encode())
        with repository.lock:
            repository.branches.setdefault(branch, repository.head)
            return repository.commit(branch, lambda tree: tree.update(files), message, author=self.user).oid

    def _stored(self, path: Path, repository: Repository) -> File:
        with path.open("rb") as source:
            sample = source.read(512)
        if is_lfs(path.name, path.stat().st_size, sample, repository.read(".gitattributes")):
            return self.objects.add_lfs(chunks_of(path))
        return self.objects.add_bytes(path.read_bytes())

    def bytes_sent(self, pattern: str = "") -> int:
        """Bytes of bodies answered to requests whose path holds this regular expression."""
        return sum(request.bytes_sent for request in self.traffic.matching(pattern))

    def clear_traffic(self) -> None:
        self.traffic.clear()

    def signed(self, path: str) -> str:
        """A URL on the CDN that its holder may use for a while."""
        return f"{self.cdn}{self.signer.sign(path)}"

    def expire_links(self) -> None:
        """Every signed URL handed out so far is refused from now on."""
        self.signer.expire()

    def revision(self, repository: Repository, revision: str) -> Commit:
        """Raises: Refused: there is none."""
        try:
            return repository.commit_at(revision)
        except KeyError:
            raise no_revision(revision) from None

    def answer(self, call: Call) -> Answer:
        """Find the endpoint, ask for its right, and let it answer.

        Raises:
            Refused: it may not, or there is nothing.
        """
        if (call.record.host == self.cdn_host) != bool(_ON_CDN.match(call.path)):
            raise Refused(404, f"This is not to be had at {call.record.host}")
        method = "GET" if call.method == "HEAD" else call.method
        for each in routes.ROUTES:
            match = each.pattern.fullmatch(call.path)
            if match and each.method == method:
                named = {name: unquote(value) for name, value in match.groupdict().items()}
                if "repo" in named:
                    repository = self._permitted(call, named.pop("repo"), each.right)
                    return each.answer(self, call, repository, **named)
                if each.right and call.account is None:
                    raise Refused(401, "Invalid username or password.")
                return each.answer(self, call, **named)
        if _NO_NAME.fullmatch(call.path):
            raise no_repository(call.account)
        raise Refused(404, "Sorry, we can't find the page you are looking for.")

    def may_write(self, call: Call, repository: Repository, ref: str) -> bool:
        """Whether this account may commit there: owners anywhere, whoever opened a pull request to that one."""
        assert call.account is not None
        opened = [each.author for each in repository.pull_requests if each.ref == ref]
        return call.account.owns(repository.namespace) or call.user in opened

    def _permitted(self, call: Call, name: str, right: str) -> Repository:
        """The repository, if this account has this right on it."""
        repository = self.repositories.get(name.removeprefix("models/"))
        account = call.account
        if repository is None or not sees(account, repository):
            raise no_repository(account)
        if right == routes.CONTENT and not admitted(account, repository):
            raise gated_off(account, repository.name)
        if right in (routes.PROPOSE, routes.WRITE):
            if account is None:
                raise Refused(401, "Invalid username or password.")
            if account.role != "write":
                raise Refused(403, "Forbidden: you must use a write token to do this.")
            if right == routes.WRITE and not account.owns(repository.namespace):
                raise Refused(403, "Forbidden: you have no right to write to this repository.")
        return repository
