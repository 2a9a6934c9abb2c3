"""The paper in miniature: trained checkpoints small enough to ship, and what shows a merge on them.

checkpoints/   five checkpoints of a made-up world, and 480 probes (its README.md says more)
probes.py      asks a checkpoint the probes; counts safety, over-refusal and helpfulness
report.py      the table and the plot of what was counted
demo.py        `python -m safegraft_trainers.lab.demo`: a server, merges over gRPC, probes, report

Everything runs on a CPU and downloads nothing. The demo uses safegraft as its users do: through
the command line and `safegraft.Client`.
"""
