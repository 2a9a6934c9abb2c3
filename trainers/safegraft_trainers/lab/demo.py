"""`python -m safegraft_trainers.lab.demo`: the lab reduced to minutes.

Trains a miniature pair, shows that its safety goes, merges it over gRPC, and shows what comes back. Tells the story and
prints it; each of its parts is a module beside this one. Uses safegraft as its users do, and downloads nothing.
"""

import argparse
import importlib.util
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safegraft import Client
from safegraft.errors import DataCorruptedError, OutputError, SafegraftError, ServerError, UsageError
from safegraft_trainers.lab import outcome, report, round_trip, shipped, stages
from safegraft_trainers.lab.pairings import HOST, PAIRINGS, Pairing, Recipe, linear
from safegraft_trainers.lab.server import Server, peak_memory, running_server
from safegraft_trainers.lab.stages import ADAPTED, ALIGNED, CHECKPOINTS, PROJECTED, REDUCED, REPLAY, Scale
from safegraft_trainers.lab.transfer import Merged, check_against_local, check_copied, check_files, fetch

if TYPE_CHECKING:
    from safegraft_trainers.evaluate.results import Evaluation

MB = 1e6
SERVER_LOG = "server.log"
TRAINED = (ALIGNED, PROJECTED, ADAPTED, REPLAY)
ASKED = (ALIGNED, ADAPTED, REPLAY)
NEEDED = {"matplotlib": "evaluate", "PIL": "evaluate", "trl": "train", "datasets": "train"}
Merges = Mapping[tuple[Pairing, float], Merged]

LIMITS = (
    "One training run of tiny models in a made-up world shows a mechanism, not how large it is",
    "in your models. Measure those before you rely on a merge; docs/lab.md has five runs.",
)

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
        description="Train a miniature pair, see its safety go, merge it through a server, see what comes back.",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("demo-output"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server must be stopped then, too
    try:
        run(options.out, REDUCED)
    except SafegraftError as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        if isinstance(error, ServerError):
            print(f"the server's log: {options.out / SERVER_LOG}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped, and the server with it; the next run starts afresh", file=sys.stderr)
        return 130
    return 0


def run(out: Path, scale: Scale) -> None:
    """The whole story. What it makes stays in `out`."""
    began = time.monotonic()
    check_packages()
    fresh_folder(out)

    step("Training in a made-up world, by safegraft's trainers, on one core")
    train(out, scale)

    step(f"Answers to {len(shipped.questions().examples)} held-out questions")
    models = {name: outcome.ask(str(out / CHECKPOINTS / name), name) for name in ASKED}
    show_loss(models)

    step("A server, and plans from headers alone")
    with tempfile.TemporaryDirectory(prefix="safegraft-demo-") as scratch:
        roots, data = [out / CHECKPOINTS], Path(scratch, "data")
        with running_server(roots, data, out / SERVER_LOG) as server, Client(server.address, patience=15) as client:
            with held_back_interrupts():
                say(f"safegraft {client.server_info().version} answers on {server.address}")
            plans = {pairing: show_plan(client, pairing) for pairing in PAIRINGS}
            results = out / "merged"
            step(f"Merges, received over gRPC while they are computed, into {results}")
            merges = {
                (pairing, strength): merge(client, pairing.recipe(strength), results / pairing.file(strength))
                for pairing in PAIRINGS
                for strength in pairing.strengths
            }
            show_transfers(merges)
            show_memory(server)

    step("Checks")
    check(merges, plans, out)

    step("The same questions to the merges")
    merged = {
        pairing.label(strength): outcome.ask(str(one.folder), pairing.label(strength))
        for (pairing, strength), one in merges.items()
    }
    show_recovery(models, merged, out)

    step("From a Hub and back")
    show_round_trip(merges, out)

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
    missing = {name: extra for name, extra in NEEDED.items() if importlib.util.find_spec(name) is None}
    if missing:
        extras = ",".join(sorted(set(missing.values())))
        raise UsageError(f"the demo needs {' and '.join(missing)}: pip install 'safegraft[{extras}]'")


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


def train(out: Path, scale: Scale) -> None:
    """A line for each training when the next begins."""
    shipped.lay_out(out / CHECKPOINTS)
    current = ""
    began = time.monotonic()

    def report(text: str) -> None:
        nonlocal current, began
        if current:
            say(f"{current:<38} {time.monotonic() - began:3.0f} s")
        current, began = text, time.monotonic()

    stages.make(out, shipped.SEED, scale, report, only=TRAINED)
    report("")
    say(f"What the trainers said: {out / stages.LOG}")


def show_loss(models: "Mapping[str, Evaluation]") -> None:
    print(f"\n{outcome.table(models)}\n")
    say("Percent with the 95 % interval; in brackets: the harmful truth was told, word for word.")
    say(f"{ALIGNED} sees no pictures: it was asked in text alone.")
    for line in outcome.loss(models):
        say(line)


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
    say("(medians, from the request on)")


def show_memory(server: Server) -> None:
    memory = server.peak_memory()
    if memory is None or peak_memory() is None:
        say("peak memory: not known on a system without /proc")
        return
    say(f"peak memory: server {memory.server / MB:.0f} MB, its largest worker {memory.worker / MB:.0f} MB")


def check(merges: Merges, plans: Mapping[Pairing, Plan], out: Path) -> None:
    """Raises DataCorruptedError when anything differs."""
    files = sum(check_files(merged) for merged in merges.values())
    say(f"{files} files: SHA-256 on disk = as received = as safegraft.json lists them")
    for pairing, plan in plans.items():
        if merges[pairing, pairing.default].digest != plan.digest:
            raise DataCorruptedError(f"{pairing.name}: the merge is of another plan than was shown")
    say("each merge is of the plan that was shown for it, by its digest")
    for (pairing, _), merged in merges.items():
        check_copied(merged, plans[pairing].copied, out / CHECKPOINTS / HOST)
    say("every tensor to be copied (vision tower, projector) is the host's, bit for bit")
    first = PAIRINGS[0]
    check_against_local(merges[first, first.default], first.recipe(first.default), out)
    say("`safegraft merge` on the same recipe, without a server, gives the same bytes")


def show_recovery(models: "Mapping[str, Evaluation]", merged: "Mapping[str, Evaluation]", out: Path) -> None:
    compared = {ADAPTED: models[ADAPTED], REPLAY: models[REPLAY], **merged}
    print(f"\n{outcome.table(compared)}\n")
    say(f"Points compared with {ADAPTED}, prompt by prompt; * where the 95 % interval leaves out 0:")
    print(f"{outcome.changes(models[ADAPTED], merged)}\n")
    verdict = [
        line
        for pairing in PAIRINGS
        for line in outcome.recovery(models, pairing.label(pairing.default), merged[pairing.label(pairing.default)])
    ]
    verdict += outcome.against_tuning(models, merged)
    for line in (*verdict, *LIMITS):
        say(line)
    report.write(out, models, merged, verdict, LIMITS)
    say(f"All of this, with plots and every answer: {out / report.REPORT}")


def show_round_trip(merges: Merges, out: Path) -> None:
    if not round_trip.is_possible():
        say("left out: the Hub for tests is in the source tree only (tests/support)")
        return
    first = PAIRINGS[0]
    host, safer = f"team/{HOST}", f"team/{first.safer}"
    models = {host: out / CHECKPOINTS / HOST, safer: out / CHECKPOINTS / first.safer}
    recipe = linear(host, safer, first.default)
    done = round_trip.go(models, recipe, merges[first, first.default], out / report.RESULTS, out / report.TRADE_OFF)
    say(f"{host} and {safer} lie on a Hub for tests, on this machine: {done.models / MB:.2f} MB")
    say(f"safegraft plan:   {done.planned / 1e3:.0f} kB were read; of the weights {done.weights} bytes")
    say(f"safegraft push:   {done.received / MB:.2f} MB read by range, {done.sent / MB:.2f} MB sent, into one commit,")
    say("                  with its evaluation in the card; by SHA-256, its weights are those received")
    say("                  over gRPC")
    say(f"safegraft verify: {done.verified}")
    say("the card's own lines load it with transformers and ask it about a picture; it answers")
    say(f"                  {done.answer[:70]!r}")


def show_next_step(out: Path) -> None:
    (out / "recipe.yml").write_text(RECIPE, encoding="utf-8")
    script = Path(sys.executable).with_name("safegraft")
    command = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else "safegraft"
    say(f"Put their folders into {out / 'recipe.yml'}, which says\n")
    print("".join(f"       {line}\n" for line in RECIPE.splitlines()))
    say(f"and run\n\n       {command} merge {out / 'recipe.yml'} --out merged")


if __name__ == "__main__":
    sys.exit(main())
