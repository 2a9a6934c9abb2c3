"""What makes, tests and explains the checkpoints that safegraft merges.

lab/   the paper in miniature: trained checkpoints, probes, and the demo

Imports safegraft and never its plugins; safegraft knows nothing of it.
"""
