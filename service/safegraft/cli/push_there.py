"""`safegraft push ID ORG/NAME --server`: a server publishes one of its merges."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft.cli.progress import meter
from safegraft.cli.remote import connect, continuing
from safegraft.cli.terminal import note, say, say_json
from safegraft.errors import UsageError

if TYPE_CHECKING:
    from safegraft.hub.publication import Destination
    from safegraft.rpc.client import Publication


def push_there(
    id: str,
    destination: "Destination",
    *,
    server: str,
    token_file: Path | None,
    ca: Path | None,
    credential: str | None,
    evaluation: Path | None,
    plot: Path | None,
    unevaluated: bool,
    as_json: bool,
) -> None:
    """Have it published, wait for that, and print what came of it. Raises what `Client.publish` raises, UsageError."""
    token = None if credential else _own_token(server, ca)
    goes_on = f"the server goes on (safegraft watch {id} shows it); "
    with connect(server, token_file, ca) as client, continuing(goes_on), meter("publishing") as show:
        published = client.publish(
            id,
            destination.repo,
            private=destination.private,
            revision=destination.revision,
            pull_request=destination.pull_request,
            tags=destination.tags,
            message=destination.message,
            replace=destination.replace,
            evaluation=evaluation,
            plot=plot,
            unevaluated=unevaluated,
            credential=credential,
            token=token,
            progress=lambda progress: show(progress.bytes_done, progress.bytes_total, progress.file),
        )
    for text in published.warnings:
        note(f"warning: {text}")
    if as_json:
        say_json(describe_publication(published))
        return
    done = "proposed" if published.pull_request else "published"
    say(f"{done}: {published.url}{' (private)' if published.private else ''}")
    say(f"commit {published.commit} of merge {published.merge}")
    if published.tags:
        say(f"tags: {', '.join(published.tags)}")


def describe_publication(published: "Publication") -> dict[str, Any]:
    """The JSON document of a publication on a server."""
    return {
        "id": published.id,
        "merge": published.merge,
        "state": str(published.state),
        "created": published.created.isoformat(),
        "updated": published.updated.isoformat(),
        "repo": published.repo,
        "url": published.url,
        "commit": published.commit,
        "revision": published.revision,
        "pull_request": published.pull_request,
        "tags": list(published.tags),
        "private": published.private,
        "evaluated": published.evaluated,
        "bytes_done": published.bytes_done,
        "bytes_total": published.bytes_total,
        "notes": list(published.warnings),
    }


def _own_token(server: str, ca: Path | None) -> str:
    """The token that this machine has for the Hub. It goes to a server only where nobody can listen."""
    from huggingface_hub import get_token

    from safegraft.rpc.options import is_loopback, split_address

    if ca is None and not is_loopback(split_address(server)[0]):
        raise UsageError(
            f"your token for the Hub would travel to {server} unencrypted: give --ca for a server with TLS, or "
            "--hub-credential NAME for one that has its own"
        )
    token = get_token()
    if token is None:
        raise UsageError(
            "publishing needs a token for the Hub: log in with `hf auth login`, set HF_TOKEN, or give "
            "--hub-credential NAME for the server's own"
        )
    return token
