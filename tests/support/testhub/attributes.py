"""Which files go to LFS: `.gitattributes`, a size, and bytes that are no text, as the Hub decides."""

from fnmatch import fnmatchcase

LARGE = 10 * 1000 * 1000
_ENDINGS = """
7z arrow bin bin.* bz2 ckpt ftz gz h5 joblib lfs.* mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth
rar safetensors tar.* tar tflite tgz wasm xz zip zst
"""
DEFAULT = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in _ENDINGS.split()).encode()
"""The `.gitattributes` of a new repository."""


def is_lfs(path: str, size: int, sample: bytes, attributes: bytes) -> bool:
    """Whether a file of this size that begins with these bytes belongs to LFS."""
    return size > LARGE or b"\0" in sample or _tracked(path, attributes.decode(errors="replace"))


def _tracked(path: str, attributes: str) -> bool:
    tracked = False
    for line in attributes.splitlines():
        pattern, *settings = line.split() or ["#"]
        if not pattern.startswith("#") and _matches(path, pattern):
            tracked = "filter=lfs" in settings  # the last line that matches counts
    return tracked


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path if "/" in pattern else path.rpartition("/")[2], pattern.removeprefix("/"))
