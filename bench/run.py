"""One round after the other, and everybody in turn within it, so that a machine's moods hit all sides alike."""

import fnmatch
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import served, startup
from bench.cases import PROFILES, Case
from bench.measure import CommandFailedError
from bench.results import Recorder
from bench.sets import Sets
from bench.sides import ROOT, Arena

BUILD = ROOT / "build/bench"


class Run:
    """Args: only: a pattern of case names; rounds: at most so many of each."""

    def __init__(
        self, out: Path, profile: str, *, only: str = "*", rounds: int | None = None, build: Path = BUILD
    ) -> None:
        self._profile = PROFILES[profile]
        self._only = only
        self._most = rounds
        self._sets = Sets(build.resolve() / "sets")  # children work in another folder
        self._scratch = build.resolve() / "scratch"
        self._recorder = Recorder(out, profile)
        self._began = time.monotonic()
        self.failed = 0

    def run(self) -> None:
        """Everything that the profile asks for. A side that fails is told, and the others go on."""
        try:
            self._start_up()
            self._merges([case for case in self._profile.merges if self._wanted(case.name)])
            self._served()
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _merges(self, cases: Sequence[Case]) -> None:
        for size, name in dict.fromkeys((case.size, name) for case in cases for name in case.folders):
            self._say(f"checkpoint {size} {name}")
            self._sets.model(size, name)
        arena = Arena(self._scratch / "merges", self._sets)
        rounds = max((count for case in cases for count in case.rounds.values()), default=0)
        for number in range(self._at_most(rounds)):
            for case in cases:
                if sides := [side for side, count in case.rounds.items() if number < self._at_most(count)]:
                    arena.warm(case)
                    turn = number % len(sides)
                    for side in sides[turn:] + sides[:turn]:
                        self._one(case.name, side, number, lambda case=case, side=side: arena.measure(case, side))

    def _start_up(self) -> None:
        commands = startup.commands(self._sets, self._profile.headers, self._scratch / "start")
        wanted = {name: command for name, command in commands.items() if self._wanted(name)}
        for number in range(self._at_most(self._profile.start_rounds)):
            for name, command in wanted.items():
                self._one(name, command.side, number, command.measure)
        for name, command in wanted.items():
            self._one(name, command.side, 0, command.heavy_imports)

    def _served(self) -> None:
        if not self._wanted(served.CASE):
            return
        profile = self._profile
        job = served.Job(
            sets=str(self._sets.root),
            seed=self._sets.seed,
            size=profile.served_size,
            upload_size=profile.upload_size,
            rounds=self._at_most(profile.served_rounds),
            scratch=str(self._scratch / "served"),
        )
        seen: Counter[tuple[str, str]] = Counter()
        try:
            for case, side, figures in served.measure(job):
                self._keep(case, side, figures, seen[case, side])
                seen[case, side] += 1
        except CommandFailedError as error:
            self._fail(served.CASE, error)

    def _one(self, case: str, side: str, number: int, measure: Callable[[], dict[str, float]]) -> None:
        try:
            figures = measure()
        except CommandFailedError as error:
            self._fail(f"{case}, {side}", error)
        else:
            self._keep(case, side, figures, number)

    def _keep(self, case: str, side: str, figures: dict[str, float], number: int = 0) -> None:
        self._recorder.add(case, side, figures)
        told = "  ".join(f"{name} {figures[name]:.3g}" for name in list(figures)[:3])
        self._say(f"round {number + 1}  {case:26} {side:22} {told}")

    def _fail(self, what: str, error: CommandFailedError) -> None:
        self.failed += 1
        self._say(f"{what} FAILED: {error}")

    def _wanted(self, name: str) -> bool:
        return fnmatch.fnmatchcase(name, self._only)

    def _at_most(self, rounds: int) -> int:
        return rounds if self._most is None else min(rounds, self._most)

    def _say(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {line}", flush=True)
