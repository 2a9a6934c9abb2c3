"""The paper in miniature: trained checkpoints small enough to ship, and what shows a merge on them.

checkpoints/   five checkpoints of a made-up world, and 480 probes (its README.md says more)
probes.py      asks a checkpoint the probes; counts safety, over-refusal and helpfulness
pairings.py    which of them are merged, how, and how strongly
server.py      `safegraft serve` as a child process, and its memory
transfer.py    merges received over gRPC, and checks of what arrived
bulk.py        a larger pair with random weights, for timing
report.py      the tables and the plot
demo.py        `python -m safegraft_trainers.lab.demo`: the story of all that

Everything runs on a CPU and downloads nothing. The demo uses safegraft as its users do: through
the command line and `safegraft.Client`.
"""
