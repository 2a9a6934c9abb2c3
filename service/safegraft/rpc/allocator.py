"""Keeps the C library from giving memory back to the kernel after every message.

Messages of half a megabyte are above glibc's thresholds: by default each copy of each message is fresh memory, and the
kernel clears its 128 pages one fault at a time. That cost 2.4 of 3.4 CPU seconds a gigabyte served.
"""

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BYTES = 64 << 20  # freed memory that the process holds on to
_HEAP_BYTES = 8 << 20  # smaller pieces come from the heap, and so from memory that was used before


def keep_freed_memory() -> None:
    """For a process of our own, at its start. Does nothing where the C library is not glibc."""
    library = ctypes.CDLL(None)
    try:
        mallopt = library.mallopt
    except AttributeError:
        return  # macOS, musl: other allocators with other habits
    mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _HEAP_BYTES)
