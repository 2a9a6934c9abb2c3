"""safegraft's own merge methods, one module a family, each registered through an entry point like a stranger's.

Means and interpolations
    linear.py, passthrough.py, slerp.py, nuslerp.py, multislerp.py, karcher.py, model_stock.py, nearswap.py
Task vectors, element by element
    task_arithmetic.py, ties.py, dare.py, della.py, breadcrumbs.py, sce.py, ram.py, magmax.py, consensus.py, pcb.py,
    cabs.py
Task vectors as matrices
    tsv.py, iso.py, star.py, wudi.py, knots.py
Models at work on data
    fisher.py, regmean.py
safety/            methods that restore safety
lines.py           LiNeS, a modifier of any of them
mergekit.py        all of mergekit's methods, by its own code; mergekit_table.py: what they are called, take and need

What several of them stand on
    weights.py        weights that float32 holds and that do not cancel
    span.py           inner products of whole tensors, and the sum that they weigh
    task_vectors.py   differences from the base, in flat blocks and in whole rows
    sparsified.py     sparsify, rescale, combine
    sign_election.py  the elected sign, and the sum of what agrees with it
    magnitude.py      the k largest elements of a tensor seen block by block
    float_bits.py     masks by integer operations on floats' bits
    random_bits.py    random numbers by seed and position
    matrixwise.py     which tensors are matrices, and merging those alone
    spectrum.py       singular values and vectors of one matrix
"""
