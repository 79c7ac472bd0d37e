"""The C library's allocator, told to keep what is freed."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h
_NEVER = -1


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks for the next allocation, for the rest of the process.

    By default it gives every block above 32 MiB back to the kernel, and each update takes the same
    pages anew, to be zeroed one fault at a time. What is kept is at most what was held at the peak.

    Returns:
        Whether it was told; other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
