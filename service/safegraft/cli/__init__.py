"""The command line: a thin skin that reads arguments, calls the library and prints.

run.py        main(): runs a command and turns whatever happens into a message and an exit code
root.py       the command group; a command's module is imported when it is called
options.py    options and argument types that commands share
sizes.py      5GB and back
terminal.py   what is safe to print; tables
progress.py   a bar on a terminal, a line now and then elsewhere
interrupt.py  Ctrl-C and SIGTERM
outcome.py    how a finished merge is shown
remote.py     the way to a server
upload.py     local models for a server's merge

merge.py  plan.py  serve.py  pull.py  jobs.py (watch, ls, cancel, rm)  health.py
catalog.py (methods, plugins)  doctor.py

Results go to stdout; progress, warnings and errors to stderr. The exit code is 0 when done,
2 when the recipe or the usage is wrong, 3 when an input is unusable, 4 when the server or the way
to it failed, 1 for anything else. Nothing here decides what a merge does.
"""

from safegraft.cli.run import main

__all__ = ["main"]
