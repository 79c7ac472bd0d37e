"""Making the C library's allocator keep what is freed."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h
_NEVER = -1


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks for the next allocation, for the rest of the process.

    By default it returns every block above 32 MiB to the kernel, and each update gets the same
    pages again, zeroed one page fault at a time. At most the peak usage is kept.

    Returns:
        Whether it was set; other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
