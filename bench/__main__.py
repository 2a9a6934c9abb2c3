"""The command line of the benchmark."""

import argparse
import signal
import sys
from pathlib import Path

from bench.cases import PROFILES
from bench.report import write_report
from bench.run import BUILD, Run

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure safegraft, mergekit and the floor.")
    parser.add_argument("--profile", choices=PROFILES, default="quick", help="default: %(default)s")
    parser.add_argument("--only", metavar="GLOB", default="*", help="cases by name, such as 'ties/*' or 'start/*'")
    parser.add_argument("--rounds", metavar="N", type=int, help="measure nothing more often than this")
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help="default: bench/results")
    parser.add_argument(
        "--build", metavar="DIR", type=Path, default=BUILD, help="for models and scratch; default: build/bench"
    )
    parser.add_argument("--readme", action="store_true", help="put the tables into bench/README.md, too")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: write the report of the runs in --out again"
    )
    options = parser.parse_args()
    if options.readme and options.out.resolve() != RESULTS:
        parser.error("--readme is for the results in bench/results")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = 0
    if not options.report:
        run = Run(options.out, options.profile, only=options.only, rounds=options.rounds, build=options.build)
        try:
            run.run()
        except KeyboardInterrupt:
            print("\nstopped; the report is of what there is", file=sys.stderr)
            failed = 130
        failed = failed or min(run.failed, 1)
    write_report(options.out, readme=options.readme)
    return failed


if __name__ == "__main__":
    sys.exit(main())
