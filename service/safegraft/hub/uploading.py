"""Sends files to a repository, before the commit that makes them visible: by Xet where the Hub has it, else by LFS.

Knows what a file is called and what it holds, and nothing of merges.
"""

import io
import logging
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, cast

import httpx2
from huggingface_hub import CommitOperationAdd, constants, lfs, utils
from huggingface_hub.errors import HfHubHTTPError

from safegraft.engine.staging import FileDigest
from safegraft.errors import OutputError, Problem, SafegraftError
from safegraft.hub.results import Staged
from safegraft.hub.retrying import may_pass, pause, retried, stop_if
from safegraft.remote.access import HubAccess, scrub

UPLOADS = 3  # attempts at one file; the library tries each of its requests several times by itself
AT_ONCE = 100  # objects that are asked about in one request
_NOT_TEXT = bytes(8)  # a safetensors file begins with a length, which has zeros: how the Hub tells it from text
_MAX_SAID = 300  # characters of a server's own words
_SPOILED = 400  # what the Hub answers when what has arrived is not what was announced
_EXPIRED = 403  # what a store answers to a signed URL that is too old

Passed = Callable[[str, int], None]  # a file's name, and how many of its bytes are sent
Never = Callable[[], bool]


class Uploads:
    """Sends files one after the other. `bytes_sent`: of files' content, that had to be sent.

    revision: whose settings say what goes to LFS.
    """

    def __init__(
        self,
        access: HubAccess,
        repository: str,
        revision: str,
        *,
        pull_request: bool,
        cancelled: Never,
    ) -> None:
        self.bytes_sent = 0
        self._access = access
        self._api: Any = access.api()
        self._repository = repository
        self._revision = revision
        self._pull_request = pull_request
        self._cancelled = cancelled
        self._xet = self._offers_xet()

    def there(self, files: Mapping[str, FileDigest]) -> set[str]:
        """Which of these files the Hub has already, though they may be of no commit."""
        names = list(files)
        found: set[str] = set()
        ask = cast(Any, lfs).post_lfs_batch_info
        for start in range(0, len(names), AT_ONCE):
            asked = names[start : start + AT_ONCE]
            infos = [lfs.UploadInfo(files[name].size, b"", bytes.fromhex(files[name].sha256)) for name in asked]
            offers, _, _ = ask(
                infos,
                token=None,  # it is in the headers
                repo_type="model",
                repo_id=self._repository,
                revision=None if self._pull_request else self._revision,
                endpoint=self._access.url,
                headers=self._access.headers(),
            )
            whole = {one["oid"] for one in offers if not one.get("actions")}
            found.update(name for name in asked if files[name].sha256 in whole)
        return found

    def known(self, files: Mapping[str, FileDigest]) -> list[CommitOperationAdd]:
        """For the commit: files that the Hub has. Nothing is sent."""
        operations: list[CommitOperationAdd] = []
        for name, digest in files.items():
            operation = CommitOperationAdd(name, b"")
            operation.path_or_fileobj = cast(BinaryIO, _Absent(f"{self._repository}/{name}"))
            operation.upload_info = lfs.UploadInfo(digest.size, _NOT_TEXT, bytes.fromhex(digest.sha256))
            operations.append(operation)
        if operations:
            with _own_errors(self._repository):
                self._preupload(operations)
        return operations

    def large(self, name: str, staged: Staged, passed: Passed) -> CommitOperationAdd:
        """Send a file that lies on disk; it may go afterwards. passed: told how far it is."""

        def attempt() -> CommitOperationAdd:
            operation = CommitOperationAdd(name, str(staged.path))
            operation.upload_info.sha256 = bytes.fromhex(staged.sha256)  # or all of it would be read once more
            if self._xet:
                self._preupload([operation])
                sent = staged.size
            else:
                with _Watched(staged.path, lambda position: passed(name, position), self._cancelled) as file:
                    operation.path_or_fileobj = file
                    self._preupload([operation])
                    sent = file.furthest
            if operation.path_or_fileobj != b"":  # no matter for LFS: it goes with the commit itself
                operation.path_or_fileobj = staged.path.read_bytes()
                sent = staged.size
            self.bytes_sent += sent
            return operation

        return self._persist(attempt, f"{self._repository}/{name}")

    def small(self, contents: Mapping[str, bytes]) -> list[CommitOperationAdd]:
        """Send what of these goes to LFS, and keep the rest for the commit."""

        def attempt() -> list[CommitOperationAdd]:
            operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
            if not self._xet:
                for operation, content in zip(operations, contents.values(), strict=True):
                    operation.path_or_fileobj = io.BytesIO(content)
            self._preupload(operations)
            return operations

        operations = self._persist(attempt, self._repository)
        self.bytes_sent += sum(map(len, contents.values()))
        return operations

    def _preupload(self, operations: list[CommitOperationAdd]) -> None:
        self._api.preupload_lfs_files(
            self._repository,
            operations,
            revision=self._revision,
            create_pr=self._pull_request,
            gitignore_content="",  # a .gitignore that is there would leave files out without a word
        )

    def _persist(self, attempt: Callable[[], Any], where: str) -> Any:
        failed = 0
        while True:
            stop_if(self._cancelled)
            try:
                with _own_errors(where):
                    return attempt()
            except (HfHubHTTPError, httpx2.TransportError) as error:
                failed += 1
                if failed == UPLOADS or not self._may_help(error):
                    raise
                pause(error, failed, self._cancelled)

    def _may_help(self, error: Exception) -> bool:
        """Whether sending it once more may."""
        if may_pass(error) or not isinstance(error, HfHubHTTPError):
            return may_pass(error)
        status = error.response.status_code
        elsewhere = not str(error.response.request.url).startswith(f"{self._access.url}/")
        return status == _SPOILED or (status == _EXPIRED and elsewhere)

    def _offers_xet(self) -> bool:
        if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
            return False
        url = f"{self._access.url}/api/models/{self._repository}/xet-write-token/{self._revision}"
        params = {"create_pr": "1"} if self._pull_request else None

        def ask() -> bool:
            response = cast(Any, utils).get_session().get(url, headers=self._access.headers(), params=params)
            if response.status_code == 404:
                return False
            utils.hf_raise_for_status(response)
            return True

        return retried(ask, self._cancelled)


class _Watched(io.BufferedReader):
    """A file that tells how far it has been read, and stops being read when somebody asks to stop."""

    def __init__(self, path: Path, passed: Callable[[int], None], cancelled: Never) -> None:
        super().__init__(io.FileIO(path))
        self.furthest = 0
        self._tell_passed, self._cancelled = passed, cancelled

    def read(self, size: int | None = -1, /) -> bytes:
        stop_if(self._cancelled)
        content = super().read(size)
        position = self.tell()
        self.furthest = max(self.furthest, position)
        self._tell_passed(position)
        return content


class _Absent(io.BufferedIOBase):
    """Stands for a file whose bytes are not here, because the Hub has them."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def seek(self, offset: int, whence: int = 0, /) -> int:
        del offset, whence
        return 0

    def tell(self) -> int:
        return 0

    def read(self, size: int | None = -1, /) -> bytes:
        del size
        message = "the Hub had it and has it no more: run again, and it is sent again"
        raise OutputError(Problem(self._where, message))


@contextmanager
def _own_errors(where: str) -> Generator[None]:
    """The reason in the place of what the library wraps it in, and its bare complaints as OutputErrors."""
    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, SafegraftError, OSError):
        raise
    except (RuntimeError, ValueError) as error:
        reason: BaseException | None = error
        while reason is not None:
            if isinstance(reason, (HfHubHTTPError, httpx2.HTTPError, SafegraftError)):
                raise reason from None
            reason = reason.__cause__
        said = " ".join(scrub(str(error)).split())[:_MAX_SAID]
        raise OutputError(Problem(where, f"cannot be uploaded: {said}")) from error


@contextmanager
def quiet_library() -> Generator[None]:
    """Without the client library's own progress bars, and what it says about each of its attempts."""
    log = logging.getLogger("huggingface_hub")
    level, silent = log.level, utils.are_progress_bars_disabled()
    log.setLevel(logging.ERROR)
    if not silent:
        utils.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)  # httpx2, of how it is called
            warnings.filterwarnings("ignore", "Warnings while validating metadata", UserWarning)  # of somebody's card
            yield
    finally:
        log.setLevel(level)
        if not silent:
            utils.enable_progress_bars()
