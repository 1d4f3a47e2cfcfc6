"""Settings of the process that make training on a CPU faster. Only the command line calls this; importing changes nothing.

docs/log.md says what keeping freed memory is worth, beside other allocators. The spin count costs little on an idle machine
and keeps the speed where another process is busy.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_SPIN_COUNT = "2000"


def tune_process() -> None:
    """Set thread waiting and memory allocation; must run before torch is imported. Never fails.

    A thread of libgomp that waits for another spins by default for milliseconds: where something else holds a core, that is
    a core wasted. glibc gives large blocks back to the kernel at every `free` and pays for them in page faults later.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    try:
        libc = ctypes.CDLL(None)
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26)):
            libc.mallopt(parameter, value)
    except (OSError, AttributeError):
        return  # not glibc: its own allocator decides
