"""`python -m safegraft_trainers.lab.demo`: merge trained miniature models through a server, and measure the result.

Tells the story and prints it; each of its parts is a module beside this one. Uses safegraft as its
users do, and downloads nothing.
"""

import argparse
import importlib.util
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from safegraft import Client
from safegraft.errors import DataCorruptedError, OutputError, SafegraftError, ServerError, UsageError
from safegraft_trainers.lab import bulk, report
from safegraft_trainers.lab.pairings import HOST, INPUTS, PAIRINGS, STRENGTHS, Pairing, Recipe, linear
from safegraft_trainers.lab.probes import CHECKPOINTS, FourAxes, Respondent, ask, load_probes
from safegraft_trainers.lab.report import Curve
from safegraft_trainers.lab.server import Server, peak_memory, running_server
from safegraft_trainers.lab.transfer import Merged, check_against_local, check_copied, check_files, fetch

MB = 1e6
SERVER_LOG = "server.log"
Merges = Mapping[tuple[Pairing, float], Merged]

RECIPE = """\
merge_method: linear
models:
  - model: path/to/your-lvlm         # the vision-language model: the result looks like it
    parameters: {weight: 0.75}
  - model: path/to/its-aligned-llm   # the language model it was adapted from
    parameters: {weight: 0.25}       # the strength; try 0.1 to 0.5
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code. What went wrong is one message on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m safegraft_trainers.lab.demo",
        description="Merge trained miniature models through a server, ask them 480 probes, and measure.",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("demo-output"), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="one strength a pairing, and no large models")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server must be stopped then, too
    try:
        run(options.out, quick=options.quick)
    except SafegraftError as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        if isinstance(error, ServerError):
            print(f"the server's log: {options.out / SERVER_LOG}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped, and the server with it; the next run starts afresh", file=sys.stderr)
        return 130
    return 0


def run(out: Path, *, quick: bool) -> None:
    """The whole story. What it makes stays in `out`."""
    began = time.monotonic()
    check_packages()
    fresh_folder(out)
    strengths = {pairing: (pairing.default,) if quick else STRENGTHS for pairing in PAIRINGS}

    with tempfile.TemporaryDirectory(prefix="safegraft-demo-") as scratch, ExitStack() as stack:
        large = Path(scratch, "large")
        large_pair = None if quick else stack.enter_context(written_meanwhile(large))

        step("A server, and the miniature models that come with this package")
        roots = [CHECKPOINTS] if quick else [CHECKPOINTS, large]
        server = stack.enter_context(running_server(roots, Path(scratch, "data"), out / SERVER_LOG))
        client = stack.enter_context(Client(server.address, patience=15))
        with held_back_interrupts():
            say(f"safegraft {client.server_info().version} answers on {server.address}")

        step("Plans, from headers alone")
        plans = {pairing: show_plan(client, pairing) for pairing in PAIRINGS}

        results = out / "merged"
        step(f"Merges, received over gRPC while they are computed, into {results}")
        merges = {
            (pairing, strength): merge(client, pairing.recipe(strength), results / f"{pairing.safer}-{strength:g}")
            for pairing in PAIRINGS
            for strength in strengths[pairing]
        }
        show_transfers(merges)
        if large_pair:
            show_large_merge(client, large_pair, Path(scratch, "large-merged"))
        show_memory(server)

    step("Checks")
    check(merges, plans)

    step(f"Answers to {len(load_probes())} held-out probes")
    inputs = {name: probe(CHECKPOINTS / name) for name in INPUTS}
    curves = [
        Curve(
            pairing.name,
            pairing.method,
            [(strength, probe(merges[pairing, strength].folder)) for strength in strengths[pairing]],
            pairing.default,
        )
        for pairing in PAIRINGS
    ]
    show_answers(inputs, curves, out)

    step("Your own two models")
    show_next_step(out)
    print(f"\nDone in {time.monotonic() - began:.0f} s.", flush=True)


@contextmanager
def held_back_interrupts() -> Generator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block: one call, seconds at most.

    An exception that breaks into gRPC's own bookkeeping can leave a channel that never closes.
    """
    held: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: held.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        raise KeyboardInterrupt


def step(title: str) -> None:
    print(f"\n== {title}", flush=True)


def say(text: str) -> None:
    print(f"   {text}", flush=True)


def check_packages() -> None:
    missing = [name for name in ("matplotlib", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"the demo needs {' and '.join(missing)}: pip install 'safegraft[train]'")


def fresh_folder(out: Path) -> None:
    """Make `out`, or empty it when an earlier demo made it; anything else in the way is left alone."""
    marker = out / ".safegraft-demo"
    try:
        if out.exists() and any(out.iterdir()):
            if not marker.exists():
                raise UsageError(f"{out} holds something else than a demo's results; choose another folder with --out")
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise OutputError(f"{out} cannot be used: {error.strerror}; choose another folder with --out") from error


@contextmanager
def written_meanwhile(folder: Path) -> "Generator[subprocess.Popen[bytes]]":
    """A process that writes the large pair. Not this one, so that it stays as small as a client is."""
    folder.mkdir()
    command = [sys.executable, "-m", bulk.__name__, str(folder)]
    # In a session of its own, a Ctrl-C does not reach it: this process ends it.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.terminate()


@dataclass(frozen=True, slots=True)
class Plan:
    digest: str
    copied: frozenset[str]  # the tensors that come from the host as they are


def show_plan(client: Client, pairing: Pairing) -> Plan:
    with held_back_interrupts():
        plan = client.plan(pairing.recipe(pairing.default))
    copied = frozenset(tensor["name"] for tensor in plan["tensors"] if tensor["action"] == "copy")
    merged = len(plan["tensors"]) - len(copied)
    digest = plan["digest"]
    say(f"{pairing.name:<38} {merged} tensors to merge, {len(copied):>2} to copy; plan {digest[:12]}")
    return Plan(digest, copied)


def merge(client: Client, recipe: Recipe, folder: Path) -> Merged:
    with held_back_interrupts():
        return fetch(client, recipe, folder)


def show_transfers(merges: Merges) -> None:
    for pairing in PAIRINGS:
        own = [merged for (of, _), merged in merges.items() if of is pairing]
        first = statistics.median(merged.first_byte for merged in own)
        whole = statistics.median(merged.seconds for merged in own)
        say(
            f"{pairing.name:<38} {len(own)} x {own[0].size / MB:.2f} MB,"
            f" first byte after {first:.2f} s, all after {whole:.2f} s"
        )
    if len(merges) > len(PAIRINGS):
        say("(medians, from the request on)")


def show_large_merge(client: Client, writer: "subprocess.Popen[bytes]", folder: Path) -> None:
    """The miniature models are too small to time; this pair is not."""
    if writer.wait():
        raise SafegraftError(f"writing the large pair failed with exit code {writer.returncode}; its message is above")
    merged = merge(client, linear(f"large/{bulk.LVLM}", f"large/{bulk.LLM}", 0.25), folder)
    say(
        f"{'a larger pair, random weights':<38} {merged.size / MB:.0f} MB,"
        f" first byte after {merged.first_byte:.2f} s, {merged.size / MB / merged.seconds:.0f} MB/s in all"
    )


def show_memory(server: Server) -> None:
    memory, client = server.peak_memory(), peak_memory()
    if memory is None or client is None:
        say("peak memory: not known on a system without /proc")
        return
    say(
        f"peak memory: server {memory.server / MB:.0f} MB, its largest worker {memory.worker / MB:.0f} MB,"
        f" this client {client / MB:.0f} MB"
    )


def check(merges: Merges, plans: Mapping[Pairing, Plan]) -> None:
    """Raises DataCorruptedError when anything differs."""
    files = sum(check_files(merged) for merged in merges.values())
    say(f"{files} files: SHA-256 on disk = as received = as safegraft.json lists them")
    for pairing, plan in plans.items():
        if merges[pairing, pairing.default].digest != plan.digest:
            raise DataCorruptedError(f"{pairing.name}: the merge is of another plan than was shown")
    say("each merge is of the plan that was shown for it, by its digest")
    for (pairing, _), merged in merges.items():
        check_copied(merged, plans[pairing].copied, CHECKPOINTS / HOST)
    say("every tensor to be copied (vision tower, projector) is the host's, bit for bit")
    first = PAIRINGS[0]
    check_against_local(merges[first, first.default], first.recipe(first.default))
    say("`safegraft merge` on the same recipe, without a server, gives the same bytes")


def probe(folder: Path) -> FourAxes:
    """Raises CheckpointError when transformers does not load the folder whole."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    return ask(Respondent.load(folder))


def show_answers(inputs: Mapping[str, FourAxes], curves: Sequence[Curve], out: Path) -> None:
    say("Every merge loads in transformers: no tensor is missing, left over or of another shape.")
    say("Percent of the prompts, ± half the width of the 95 % interval (Wilson):")
    print(f"\n{report.four_axes(inputs, curves)}\n")
    say("aligned-llm sees no pictures: its last two columns are over text alone.")
    say("Set by set (a plain text; beside a picture; about a word that stands in the picture only):")
    print(f"\n{report.every_set(inputs, curves)}\n")
    say("One training run of tiny models in a made-up world shows a mechanism, not how large it is")
    say("in your models. Measure those before you rely on a merge.")
    documents = {
        "inputs": {name: report.document(axes) for name, axes in inputs.items()},
        "merges": {
            curve.name: {f"{strength:g}": report.document(axes) for strength, axes in curve.points} for curve in curves
        },
    }
    (out / "results.json").write_text(json.dumps(documents, indent=1), encoding="utf-8")
    report.plot(inputs, curves, out / "trade-off.png")
    say(f"The trade-off as a picture: {out / 'trade-off.png'}; every count: {out / 'results.json'}")


def show_next_step(out: Path) -> None:
    (out / "recipe.yml").write_text(RECIPE, encoding="utf-8")
    script = Path(sys.executable).with_name("safegraft")
    command = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else "safegraft"
    say(f"Put their folders into {out / 'recipe.yml'}, which says\n")
    print("".join(f"       {line}\n" for line in RECIPE.splitlines()))
    say(f"and run\n\n       {command} merge {out / 'recipe.yml'} --out merged")


if __name__ == "__main__":
    sys.exit(main())
