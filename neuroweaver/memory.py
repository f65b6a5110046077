"""How a process of ours treats what it shares with others: memory that PyTorch frees, and cores it waits on."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h

# A thread that waits for another one spins for a moment and then sleeps. Where anything else wants a core, longer
# spinning keeps it from the very one it waits for; none at all pays with a wake-up per operation
# (`docs/decisions/0012`). The count is GCC's alone, and outranks the policy there.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "20000"}
# The same, and `keep_freed`, for a process that is yet to be started.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), **WAITING}


def ran_out(error: Exception) -> bool:
    """Whether `error` says that there is no memory left, of this machine or of its GPU."""
    kind = type(error).__name__  # PyTorch's, which need not be imported for this
    return isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "allocate memory" in str(error)


def spin_briefly() -> None:
    """Let PyTorch's threads spin a moment only while they wait; to be called before PyTorch is imported."""
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)


def keep_freed() -> None:
    """Have glibc keep freed memory instead of handing it back to the kernel at once.

    Otherwise the large tensors of every step are mapped, zeroed and unmapped anew, up to a third of its time.
    Does nothing where the C library is another one.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            libc.mallopt(option, value)
