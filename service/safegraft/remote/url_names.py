"""How messages and results show a URL."""

from urllib.parse import urlsplit

_CONTAINER_AT_ACCOUNT = ("abfs", "abfss", "az")


def shown_url(url: str) -> str:
    """Without what can be a secret: user info, query, fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:  # not even a URL
        return url.partition("?")[0].partition("#")[0].rpartition("@")[2]
    place = parts.netloc.rpartition("@")[2]
    if parts.scheme in _CONTAINER_AT_ACCOUNT and ":" not in parts.netloc:
        place = parts.netloc
    return f"{parts.scheme}://{place}{parts.path}".rstrip("/")
