"""Gives freed memory back to the system.

Every pass is a thread, and glibc keeps what a thread has freed for that thread: without this, as many copies of a
layer's scratch memory as there are passes stay with the process, which doubled its size.
"""

import ctypes


def give_back() -> None:
    """Does nothing where the C library is not glibc."""
    library = ctypes.CDLL(None)
    try:
        trim = library.malloc_trim
    except AttributeError:
        return  # macOS, musl: other allocators with other habits
    trim(0)
