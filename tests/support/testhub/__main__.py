"""Runs a Hub as a process of its own: `python -m testhub --folder DIR --port 0 --model org/name=PATH`."""

import argparse
import signal
import threading
from pathlib import Path

from testhub.hub import Hub


def main() -> None:
    parser = argparse.ArgumentParser(prog="testhub", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where content is kept (default: a temporary folder)")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--model", action="append", default=[], metavar="ORG/NAME=PATH", help="a folder to serve")
    parser.add_argument("--user", default="tester")
    parser.add_argument("--org", action="append", default=[], help="an organisation of the user")
    parser.add_argument("--token", default="hf_testhub", help="the token that may write")
    given = parser.parse_args()
    orgs = tuple(given.org) or ("org", "team")
    with Hub.start(given.folder, user=given.user, token=given.token, orgs=orgs, port=given.port) as hub:
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        for model in given.model:
            name, _, path = model.partition("=")
            hub.add_model(name, Path(path))
        print(f"listening on {hub.endpoint}", flush=True)
        stopped.wait()


if __name__ == "__main__":
    main()
