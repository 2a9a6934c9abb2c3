"""Methods in machine code, by numba where it is installed. Each has its method's torch code as its reference.

machine_code.py  how functions are compiled, and where the result is kept
numbers.py       stored numbers to float32 and back, and their bit patterns
sums.py          weighted sums of models
products.py      inner products and norms
largest.py       the elements of largest magnitude
sparse.py        sparsified task vectors, elected and summed
random_words.py  Philox
"""

import importlib.util


def is_available() -> bool:
    """Whether numba is installed. Importing it costs a quarter of a second, and is left to those who use it."""
    return importlib.util.find_spec("numba") is not None
