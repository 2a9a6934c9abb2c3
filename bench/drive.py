"""Runs safegraft's or mergekit's own command in this process, with a clock around the merge itself.

    python -m bench.drive safegraft FIGURES MODULES -- merge recipe.yml --out merged
    python -m bench.drive mergekit FIGURES MODULES -- recipe.yml merged

The clock runs from the moment when everything is planned until the merge is complete on disk. Whatever a merge imports
while it runs is imported before that: the file MODULES lists it. If there is no such file this run writes it, and its
figures count imports in.
"""

# pyright: basic
# (mergekit has no type information)

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.measure import own_cpu


class Clock:
    """Writes what the merge took to `figures`, in seconds."""

    def __init__(self, figures: Path, modules: Path) -> None:
        self._figures = figures
        self._modules = modules
        self._wall = self._cpu = 0.0
        self._before: set[str] = set()

    def start(self) -> None:
        if self._modules.exists():
            for name in json.loads(self._modules.read_text()):
                with contextlib.suppress(ImportError):  # a module that another one has put there
                    importlib.import_module(name)
        self._before = set(sys.modules)
        self._wall, self._cpu = time.perf_counter(), own_cpu()

    def stop(self) -> None:
        wall, cpu = time.perf_counter() - self._wall, own_cpu() - self._cpu
        self._figures.write_text(json.dumps({"wall": wall, "cpu": cpu}))
        if not self._modules.exists():
            self._modules.write_text(json.dumps([name for name in sys.modules if name not in self._before]))


def run_safegraft(arguments: Sequence[str], clock: Clock) -> int:
    from safegraft.cli import main
    from safegraft.engine import folder

    write_folder = folder.write_folder

    def timed(*given: Any, **named: Any) -> Any:
        clock.start()
        result = write_folder(*given, **named)
        clock.stop()
        return result

    folder.write_folder = timed  # the command looks it up when it is needed
    return main(arguments)


def run_mergekit(arguments: Sequence[str], clock: Clock) -> int:
    import mergekit.merge
    from mergekit.scripts import run_yaml

    class Executor(mergekit.merge.Executor):  # made when the plan is ready
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            clock.start()

    run_merge = run_yaml.run_merge

    def timed(*given: Any, **named: Any) -> None:
        run_merge(*given, **named)
        clock.stop()

    mergekit.merge.Executor = Executor
    run_yaml.run_merge = timed
    run_yaml.main(list(arguments), standalone_mode=False)
    return 0


TOOLS: dict[str, Callable[[Sequence[str], Clock], int]] = {"safegraft": run_safegraft, "mergekit": run_mergekit}


def main() -> int:
    tool, figures, modules, dashes, *arguments = sys.argv[1:]
    if dashes != "--":
        raise SystemExit(__doc__)
    return TOOLS[tool](arguments, Clock(Path(figures), Path(modules)))


if __name__ == "__main__":
    sys.exit(main())
