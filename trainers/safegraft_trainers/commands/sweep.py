"""`safegraft sweep`: merges at many settings, evaluated, and the best trade-off among them."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safegraft.cli.options import json_option, optional_remote_options
from safegraft.cli.remote import connect
from safegraft.cli.terminal import note, say, say_json
from safegraft.errors import SafegraftError, UsageError

if TYPE_CHECKING:
    from safegraft import Client
    from safegraft_trainers.sweep.spec import SweepSpec


@click.command()
@click.argument("spec", metavar="SWEEP.yml", type=click.Path(path_type=Path))
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep every evaluation, tables, plots and the best recipe there.",
)
@click.option("--resume", is_flag=True, help="Go on with the sweep that is in --out: nothing is measured twice.")
@click.option("--trials", metavar="N", type=click.IntRange(min=1), help="Instead of the file's, for random and optuna.")
@click.option(
    "--publish-best",
    metavar="ORG/NAME",
    help="Write the best merge to --out and publish it on the Hub, with what was measured, if it meets the "
    "constraints on held-out prompts too. PUBLISHER:DESTINATION goes to a plugin's publisher.",
)
@json_option
@optional_remote_options
def sweep(
    spec: Path,
    out: Path | None,
    resume: bool,
    trials: int | None,
    publish_best: str | None,
    as_json: bool,
    server: str | None,
    token_file: Path | None,
    ca: Path | None,
) -> None:
    """Merge at many settings, evaluate each, and find the best trade-off.

    SWEEP.yml says what is merged, how strongly, and what counts: objectives, and constraints such as
    "helpfulness >= 97% of lvlm". Candidates are evaluated without being written, on one half of the prompts;
    the winners and the baselines on the other half. With --server the server merges, and models in the file are
    named as it knows them. Exit code 1: a candidate failed, which the table shows; all others were measured.

    \b
    Examples:
      safegraft sweep sweep.yml --out swept
      safegraft sweep sweep.yml --out swept --resume --publish-best team/my-merge
      safegraft sweep sweep.yml --server merge.example:50051 --json
    """
    if server is None and (token_file or ca):
        raise UsageError(f"{'--token-file' if token_file else '--ca'} is for a server: add --server HOST:PORT")
    if out is None and (resume or publish_best):
        raise UsageError(f"{'--resume' if resume else '--publish-best'} needs --out DIR")
    _require_packages()
    from safegraft_trainers.sweep.publishing import check_destination
    from safegraft_trainers.sweep.publishing import publish_best as publish
    from safegraft_trainers.sweep.report import document, summary
    from safegraft_trainers.sweep.run import sweep as run
    from safegraft_trainers.sweep.spec import SweepSpec

    asked = _with_trials(SweepSpec.load(spec), trials)
    if publish_best:
        check_destination(publish_best)
    with _client(server, token_file, ca) as client:
        result = run(asked, out=out, resume=resume, client=client, progress=_show)
        if as_json:
            say_json(document(result))
        else:
            say(summary(result))
        if publish_best and out is not None:
            note(f"published: {publish(result, out, publish_best, client)}")
    if result.failed:
        raise SafegraftError(f"{len(result.failed)} of {len(result.candidates)} candidates failed; the table says why")


def _require_packages() -> None:
    import importlib.util

    missing = [name for name in ("matplotlib", "optuna", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"a sweep needs {' and '.join(missing)}: pip install 'safegraft[evaluate]'")


def _with_trials(spec: "SweepSpec", trials: int | None) -> "SweepSpec":
    if trials is None:
        return spec
    for name, search in (("random", spec.search.random), ("optuna", spec.search.optuna)):
        if search is not None:
            chosen = spec.search.model_copy(update={name: search.model_copy(update={"trials": trials})})
            return spec.model_copy(update={"search": chosen})
    raise UsageError("--trials is for random and optuna searches; a grid has as many candidates as it has")


@contextlib.contextmanager
def _client(server: str | None, token_file: Path | None, ca: Path | None) -> "Generator[Client | None]":
    if server is None:
        yield None
        return
    with connect(server, token_file, ca) as client:
        yield client


def _show(done: int, total: int, doing: str) -> None:
    note(f"[{done}/{total}] {doing}" if total else f"... {doing}")
