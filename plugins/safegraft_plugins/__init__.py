"""safegraft's own merge methods, one module a family, each registered through an entry point like a stranger's.

linear.py           weighted mean
slerp.py            spherical interpolation between a base and one model
task_arithmetic.py  base + weighted sum of task vectors
passthrough.py      one model, optionally scaled
weights.py          what methods with a weight a model have in common
"""
