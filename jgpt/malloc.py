"""glibc's allocator, told to keep freed buffers instead of handing them back to the kernel.

A training step on CPU frees and allocates the same large buffers again and again; by default glibc
maps each afresh, and the page faults cost 1.2 to 1.6 times the step. Call this first thing in a
program (never in a library import: it is a setting of the whole process).
"""

import ctypes

# Names and numbers of <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8

_SETTINGS = (
    (_M_MMAP_MAX, 0),
    (_M_TRIM_THRESHOLD, 2**31 - 1),
    (_M_TOP_PAD, 64 << 20),
    (_M_ARENA_MAX, 1),
)


def keep_freed_buffers() -> bool:
    """Switch it on for this process; False, and nothing done, where the C library is not glibc."""
    try:
        library = ctypes.CDLL(None)
        mallopt, _ = library.mallopt, library.gnu_get_libc_version
    except (OSError, AttributeError, TypeError):
        return False
    return min(mallopt(name, value) for name, value in _SETTINGS) == 1
