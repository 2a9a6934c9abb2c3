"""What requests must look like: each function returns a field's value or raises UsageError naming the field."""

from safegraft.engine.plan import MAX_SHARD_SIZE
from safegraft.errors import NotFoundError, Problem, UsageError
from safegraft.rpc.blobs import Blob
from safegraft.rpc.job import Retention
from safegraft.rpc.options import ServerOptions
from safegraft.v1 import artifact_service_pb2, merge_pb2

MAX_RECIPE_BYTES = 1 << 20
MAX_REQUEST_ID = 128
_MAX_THREADS = 1024


def recipe_text(text: str) -> str:
    if not text.strip():
        raise UsageError(Problem("recipe", "is empty; send the recipe's YAML text"))
    if len(text.encode()) > MAX_RECIPE_BYTES:
        raise UsageError(Problem("recipe", f"is longer than {MAX_RECIPE_BYTES} bytes"))
    return text


def shard_size(size: int) -> int:
    if size < 0:
        raise UsageError(Problem("max_shard_size", "must not be negative"))
    return size or MAX_SHARD_SIZE


def thread_count(threads: int, cores: int) -> int:
    if not 0 <= threads <= _MAX_THREADS:
        raise UsageError(Problem("threads", f"must be 0 (the server's choice) to {_MAX_THREADS}"))
    return min(threads, cores)


def retention(value: merge_pb2.Retention) -> Retention:
    match value:
        case merge_pb2.RETENTION_UNSPECIFIED | merge_pb2.RETENTION_KEEP:
            return "keep"
        case merge_pb2.RETENTION_NONE:
            return "none"
        case _:
            raise UsageError(Problem("retention", f"has no value {value}"))


def request_id(value: str) -> str | None:
    if len(value) > MAX_REQUEST_ID or not value.isascii() or not value.isprintable():
        raise UsageError(Problem("request_id", f"must be at most {MAX_REQUEST_ID} printable ASCII characters"))
    return value or None


def merge_id(name: str, field: str = "name") -> str:
    """The id within "merges/{id}"."""
    collection, slash, id = name.partition("/")
    if collection != "merges" or not slash or not id:
        raise UsageError(Problem(field, f"must be a merge's name, 'merges/ID', not {name!r}"))
    if not id.isascii() or not id.isalnum() or len(id) > 64:
        raise NotFoundError(f"{name} is not on this server")
    return id


def publication_ids(name: str) -> tuple[str, str]:
    """The two ids within "merges/{merge}/publications/{id}"."""
    merge, between, id = name.rpartition("/publications/")
    if not between:
        message = f"must be a publication's name, 'merges/ID/publications/ID', not {name!r}"
        raise UsageError(Problem("name", message))
    if not id.isascii() or not id.isalnum() or len(id) > 64:
        raise NotFoundError(f"{name} is not on this server")
    return merge_id(merge), id


def credential(name: str, options: ServerOptions, field: str) -> str:
    """The name of a credential that the server has; "": none was named."""
    names = [one.name for one in options.hub_credentials]
    if name and name not in names:
        hint = f"it has {', '.join(names)}" if names else "it has none; its owner can add one with --hub-credential"
        raise UsageError(Problem(field, f"this server has no credential {name!r}; {hint}"))
    return name


def page_size(size: int, default: int, most: int) -> int:
    if size < 0:
        raise UsageError(Problem("page_size", "must not be negative"))
    return min(size or default, most)


def blob(digest: artifact_service_pb2.BlobDigest) -> Blob:
    return Blob(digest.sha256, digest.size)


def span(offset: int, limit: int, size: int) -> tuple[int, int]:
    """The range [start, stop) that a ReadFile asks for."""
    if limit < 0:
        raise UsageError(Problem("limit", "must not be negative"))
    if not 0 <= offset <= size:
        raise UsageError(Problem("offset", f"must be 0 to {size}, the file's size, not {offset}"))
    return offset, min(offset + limit, size) if limit else size
