"""`safegraft ls`, `watch`, `cancel` and `rm`: the merges that a server has."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safegraft.cli.options import id_argument, json_option, remote_options
from safegraft.cli.progress import meter
from safegraft.cli.remote import connect
from safegraft.cli.terminal import note, say, say_json, table
from safegraft.errors import MergeCancelledError, SafegraftError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safegraft.rpc.client import Merge, Publication


@click.command()
@json_option
@remote_options
def ls(as_json: bool, server: str, token_file: Path | None, ca: Path | None) -> None:
    """List a server's merges, the newest first.

    \b
    Examples:
      safegraft ls
      safegraft ls --server merge.example:50051 --json
    """
    with connect(server, token_file, ca) as client:
        merges = list(client.list())
    if as_json:
        say_json([describe(merge) for merge in merges])
        return
    rows = [
        [merge.id, merge.state, _percent(merge), f"{merge.created:%Y-%m-%d %H:%M:%S}Z", merge.host_model]
        for merge in merges
    ]
    say(table(["ID", "STATE", "DONE", "CREATED", "HOST MODEL"], rows))


@click.command()
@id_argument
@json_option
@remote_options
def watch(id: str, as_json: bool, server: str, token_file: Path | None, ca: Path | None) -> None:
    """Follow a merge until it ends. The exit code is the merge's own: 0 only when it succeeded.

    With --json, one line for each change. Ctrl-C ends the watching, not the merge.

    \b
    Examples:
      safegraft watch 4f1c09
      safegraft watch 4f1c09 --json | jq .state
    """
    with connect(server, token_file, ca) as client:
        found = client.get(id)  # fails at once where `watch` would wait for a server to come back
        follow = _follow_json if as_json else _follow
        merge = follow(found, client.watch(id))
    if merge.error is not None:
        raise merge.error
    if merge.state == "cancelled":
        raise MergeCancelledError(f"merge {merge.id} was cancelled")
    if not as_json:
        say(f"merge {merge.id} {merge.state}; fetch it with: safegraft pull {merge.id} --out DIR")
        for publication in found.publications:
            say(_publication(publication))


def _follow(merge: "Merge", changes: "Iterator[Merge]") -> "Merge":
    """Show the changes; returns the merge as it ended."""
    state = ""
    with meter(f"merge {merge.id}") as show:
        for merge in changes:
            progress = merge.progress
            if merge.state == "running":
                show(progress.bytes_done, progress.bytes_total, progress.current_file)
            elif merge.state == "queued" and state != "queued":
                note(f"merge {merge.id} is waiting for a worker")
            state = merge.state
    return merge


def _follow_json(merge: "Merge", changes: "Iterator[Merge]") -> "Merge":
    for merge in changes:
        click.echo(json.dumps(describe(merge)))
    return merge


@click.command()
@id_argument
@remote_options
def cancel(id: str, server: str, token_file: Path | None, ca: Path | None) -> None:
    """Stop a merge on a server and remove what there is of it; or stop a publication, as `watch` names it.

    \b
    Examples:
      safegraft cancel 4f1c09
      safegraft cancel 4f1c09/publications/77aa02
    """
    merge_id, of_it, publication_id = id.partition("/publications/")
    with connect(server, token_file, ca) as client:
        if of_it:
            publication = client.cancel_publication(merge_id, publication_id)
            say(f"publication to {publication.repo} {publication.state}; nothing of it can be seen")
        else:
            merge = client.cancel(id)
            say(f"merge {merge.id} {merge.state}")


@click.command()
@id_argument
@remote_options
def rm(id: str, server: str, token_file: Path | None, ca: Path | None) -> None:
    """Delete a merge that has ended from a server, with its files.

    \b
    Examples:
      safegraft rm 4f1c09
    """
    with connect(server, token_file, ca) as client:
        client.delete(id)
    say(f"merge {id} deleted")


def describe(merge: "Merge") -> dict[str, Any]:
    """The JSON document of a merge."""
    progress = merge.progress
    return {
        "id": merge.id,
        "state": str(merge.state),
        "created": merge.created.isoformat(),
        "updated": merge.updated.isoformat(),
        "digest": merge.plan_digest,
        "host_model": merge.host_model,
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "tensors_done": progress.tensors_done,
        "tensors_total": progress.tensors_total,
        "error": None if merge.error is None else _error(merge.error),
    }


def _publication(one: "Publication") -> str:
    """A publication in a line."""
    if one.state == "running":
        return f"being published to {one.repo}; stop that with: safegraft cancel {one.merge}/publications/{one.id}"
    if one.state == "succeeded":
        return f"published: {one.url} at {one.commit}"
    return f"not published to {one.repo}: " + (f"{one.error}" if one.error else "cancelled")


def _error(error: SafegraftError) -> dict[str, Any]:
    return {
        "reason": error.reason,
        "problems": [{"where": one.where, "message": one.message} for one in error.problems],
    }


def _percent(merge: "Merge") -> str:
    total = merge.progress.bytes_total
    return f"{100 * merge.progress.bytes_done // total}%" if total else ""
