"""`safegraft verify`: are these the bytes that were merged, and are they what the recipe gives?"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safegraft.cli.interrupt import interruptible
from safegraft.cli.options import device_option, json_option
from safegraft.cli.progress import meter
from safegraft.cli.terminal import say, say_json
from safegraft.errors import InputError, Problem, UsageError

if TYPE_CHECKING:
    from safegraft.hub.verification import Recomputation, Verification

NOT_THE_SAME = 1
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(.+))?", re.ASCII)


@click.command()
@click.argument("result", metavar="DIR|ORG/NAME[@REVISION]")
@click.option("--download", is_flag=True, help="Of a repository: read the weights, too. Nothing is kept on disk.")
@click.option("--recompute", is_flag=True, help="Merge again, as the recipe in safegraft.json says, and compare.")
@click.option(
    "--models",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --recompute: where the inputs lie that are not on the Hub, by their names. Default: the current folder.",
)
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="With --recompute. Default: one a core.")
@device_option
@json_option
def verify(
    result: str, download: bool, recompute: bool, models: Path | None, threads: int | None, device: str, as_json: bool
) -> int:
    """Check a merged folder, or a repository on the Hub, against its safegraft.json.

    Every file's bytes are hashed and compared. Of a repository's weights the Hub's own sha256 is compared instead,
    unless --download reads them. With --recompute the recipe is merged again and its bytes are compared: models of
    the Hub are read at their pinned commits. An edited README.md is told and is no fault; pictures, texts and files
    of git that lie there besides are none either.

    The exit code is 0 when all bytes are as they should be, and 1 when not.

    \b
    Examples:
      safegraft verify merged
      safegraft verify org/merge@v1 --download
      safegraft verify org/merge --recompute --models models
    """
    if not recompute and (models or threads or device != "cpu"):
        option = "--models" if models else "--threads" if threads else "--device"
        raise UsageError(f"{option} is for merging again: add --recompute")
    found = _check(result, download)
    if recompute:
        found = _merge_again(found, models or Path(), threads, device)
    if as_json:
        say_json(found.to_dict())
    else:
        say("\n".join(describe(found)))
    return 0 if found.ok else NOT_THE_SAME


def _check(result: str, download: bool) -> "Verification":
    from safegraft.hub.verify import verify_folder, verify_repository

    with interruptible() as interrupt, meter("verifying") as show:
        if Path(result).expanduser().exists():
            if download:
                raise UsageError(f"--download is for a repository on the Hub; {result} is here")
            return verify_folder(Path(result).expanduser(), progress=show, cancelled=interrupt.requested)
        match = _REPOSITORY.fullmatch(_named(result))
        if match is None:
            raise InputError(
                Problem(result, "there is no such folder, and no Hub name is like it (ORG/NAME[@REVISION])")
            )
        from safegraft.remote.access import HubAccess

        return verify_repository(
            match[1], match[2], HubAccess(), download=download, progress=show, cancelled=interrupt.requested
        )


def _named(result: str) -> str:
    """What a repository's page is called, too."""
    from safegraft.hub.markdown import HUB
    from safegraft.remote.access import HubAccess

    return result.removeprefix(f"{HubAccess().url}/").removeprefix(f"{HUB}/")


def _merge_again(found: "Verification", models: Path, threads: int | None, device: str) -> "Verification":
    import safegraft
    from safegraft.engine.plan import MAX_SHARD_SIZE
    from safegraft.hub.recompute import recompute

    if found.manifest.is_adapter:
        raise UsageError(f"{found.name} is a merged adapter: --recompute is for models")
    if not models.is_dir():
        raise UsageError(f"--models: there is no folder {models}")
    with contextlib.chdir(models):  # a public name is a path from there, and keeps its name
        recipe = found.manifest.plannable(f"{found.name}/safegraft.json")
        try:
            planned = safegraft.plan(recipe, max_shard_size=found.manifest.max_shard_size or MAX_SHARD_SIZE)
        except InputError as error:
            hint = f"(inputs that are not on the Hub are looked for in {models}: see --models)"
            raise type(error)([Problem(one.where, f"{one.message} {hint}") for one in error.problems]) from error
    try:
        with interruptible() as interrupt, meter("merging again") as show:
            return recompute(
                found, planned, threads=threads, device=device, progress=show, cancelled=interrupt.requested
            )
    finally:
        planned.close()


def describe(found: "Verification") -> Iterator[str]:
    """A verification in lines, for people."""
    counts = Counter(status for _, status in found.files)
    listed = len(found.manifest.files)
    yield f"{found.name}: {counts['same']} of {listed} files are as safegraft.json lists them"
    wrong = set(found.wrong())
    for name, status in found.files:
        if status != "same":
            yield f"  {_WORDS[status] if (name, status) in wrong else _HARMLESS[status]:<9} {name}"
    if found.believed:
        files = "file" if len(found.believed) == 1 else "files"
        yield f"of {len(found.believed)} {files} the Hub's own sha256 was compared; --download reads the bytes"
    yield f"plan digest {found.manifest.plan_digest}"
    if found.recomputed is not None:
        yield from _again(found.recomputed, "what safegraft.json lists" if wrong else "this")
    elif found.ok:
        yield "--recompute tells whether they are what the recipe gives"
    if wrong:
        yield "these are not the bytes that were merged"


_WORDS = {"differs": "DIFFERS", "missing": "MISSING", "extra": "EXTRA"}
_HARMLESS = {"edited": "edited", "extra": "besides"}


def _again(again: "Recomputation", what: str) -> Iterator[str]:
    if not again.same_plan:
        yield f"merging again has another plan digest, {again.plan_digest}:"
        for name, (then, now) in again.versions.items():
            yield f"  {name} was {then or 'not used'} and is {now or 'not used'}"
        yield from (f"  the input {name} is not what it was" for name in again.inputs)
        if again.guessed_layout:
            yield "  safegraft.json does not say how large weight files may be; the usual 5GB was tried"
    for name, status in again.files:
        if status != "same":
            yield f"  {_WORDS[status]:<9} {name}"
    verdict = "is" if again.ok else "is not"
    yield f"{what} {verdict} what the recipe gives: {len(again.files)} files were computed again"
