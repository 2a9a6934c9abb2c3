"""How a publication is shown, wherever it was made, and what one would do."""

from typing import TYPE_CHECKING

from safegraft.cli.sizes import format_size
from safegraft.cli.terminal import note, say, say_json

if TYPE_CHECKING:
    from safegraft.hub.publication import Preview, Publication


def show_publication(publication: "Publication", *, asked_public: bool, as_json: bool) -> None:
    """Print it on stdout, and what one should know of it on stderr."""
    for text in publication.notes:
        note(f"warning: {text}")
    if asked_public and publication.private:
        note("note: the repository was private already and stays so; change that on the Hub, in its settings")
    if as_json:
        say_json(publication.to_dict())
        return
    done = "proposed" if publication.pull_request else "published"
    say(f"{done}: {publication.url}{' (private)' if publication.private else ''}")
    if publication.unchanged:
        say(f"it was there already, as commit {publication.commit}: no commit was made")
    else:
        again = " (continuing an earlier run)" if publication.resumed else ""
        sent = f"{format_size(publication.bytes_uploaded)} of {format_size(publication.bytes_total)} sent{again}"
        say(f"commit {publication.commit}: {publication.files} files, {sent}")
    if publication.removed:
        say(f"deleted, as it was of an earlier model: {', '.join(publication.removed)}")
    if publication.tags:
        say(f"tags: {', '.join(publication.tags)}")
    say(f"plan digest {publication.plan_digest}")


def show_preview(found: "Preview", *, as_json: bool) -> None:
    """The same of what would happen."""
    for text in found.notes:
        note(f"warning: {text}")
    if as_json:
        say_json(found.to_dict())
    else:
        say("\n".join(_described(found)))


def _described(found: "Preview") -> list[str]:
    if found.unchanged:
        there = f"{found.repo} holds all of it already, as commit {found.parent}: no commit would be made"
        return [there, *(f"would set the tag {tag}" for tag in found.tags)]
    who = "private" if found.private else "public"
    made = "" if found.branch or not found.exists else ", made from main"
    place = "a pull request to main" if found.pull_request else f"branch {found.revision}{made}"
    lines = [f"{'would publish to' if found.exists else 'would make'} {found.repo} ({who}), {place}"]
    lines += [f"  {name}  {format_size(size_bytes)}" for name, size_bytes in found.files]
    total = f"{len(found.files)} files, {format_size(found.bytes_total)}"
    there = f", of which the repository has {format_size(found.bytes_there)}" if found.bytes_there else ""
    lines.append(f"{total}{there}; {'with' if found.evaluated else 'without'} an evaluation")
    lines += [f"would delete {name}" for name in found.removed]
    lines += [f"would set the tag {tag}" for tag in found.tags]
    return [*lines, f"plan digest {found.plan_digest}; nothing was changed"]
