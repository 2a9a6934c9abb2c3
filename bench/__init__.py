"""Measures safegraft against mergekit and against what the machine needs just to read and write the bytes.

    python -m bench            # or: make bench

shapes.py    how large the models are, and what their tensors are called
sets.py      writes them, from a seed
measure.py   a command's time, memory and bytes, for the whole tree of its processes
drive.py     runs safegraft's or mergekit's command in a child, with a clock around the merge itself
sides.py     who competes: safegraft, mergekit, the floor
cases.py     what is merged, how often, by whom
startup.py   import, help and plan
served.py    downloads and uploads through a server
raw.py       the same bytes through gRPC alone
results.py   what was measured, on disk while it comes in; medians
run.py       one round after the other, everybody in turn
targets.py   what has to come out
report.py    tables
plots.py     pictures
gpu.py       merges on a GPU, where there is one: a program of its own

No module here is imported by safegraft. All but gpu.py leave torch to their children: the process that measures stays
small.
"""
