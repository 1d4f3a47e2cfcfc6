"""Peak memory of pieces of work, each in a process of its own.

    python -m cocomix.tools.bench.memory CASE WORKS

One process imports what it needs and does each kind of work once at a tiny size, which loads whatever libraries load late. It
then forks a process for each piece of work, which measures how far its resident memory rises. glibc is told to map every
large block separately, so that a freed one leaves the process at once and the peak is that of the memory alive together.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cocomix.base.errors import CocomixError

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: One thread, because a process with a pool of them can't be forked; memory hardly depends on it.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "OMP_NUM_THREADS": "1"}

#: Work that is measured: it returns the bytes among what it holds at the end that are not to be counted.
Work = Callable[[], int]


def peak_bytes(case: str, works: Sequence[tuple[str, Any]]) -> list[int]:
    """Peak memory of each piece of work, in bytes, beyond what its process held before and what the work exempts.

    Args:
        case: module of this package with `work(variant, shape)`, `SIZES` and the shape's class.
        works: variant and shape of each; a shape is a dataclass of numbers.

    Raises:
        CocomixError: there is no such figure here, or a process failed.
    """
    if not _RESET.exists():
        raise CocomixError("peak memory is read from /proc, which this system has not: `cocomix bench` needs Linux")
    words = json.dumps([(variant, dataclasses.asdict(shape)) for variant, shape in works])
    command = [sys.executable, "-m", "cocomix.tools.bench.memory", case, words]
    done = subprocess.run(command, env=os.environ | _ENVIRONMENT, capture_output=True, text=True, check=False)
    found = [int(word) for word in done.stdout.split()]
    if done.returncode or len(found) != len(works):
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CocomixError(f"peak memory of the case {case!r} could not be measured: {reason}")
    return found


def main(words: list[str]) -> int:
    """Measure; prints the bytes of each piece of work on a line."""
    case, works = words[0], json.loads(words[1])
    module = importlib.import_module(f"cocomix.tools.bench.{case}")
    small = module.SIZES["smoke"]
    for variant in {variant for variant, _ in works}:
        module.work(variant, small)()
    for variant, numbers in works:
        child = os.fork()
        if not child:
            module.work(
                variant, small
            )()  # maps the libraries' pages, which a forked process does only when it touches them
            print(_measured(module.work(variant, type(small)(**numbers))), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(f"work {variant!r} ended with {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
            return 1
    return 0


def _measured(work: Work) -> int:
    """Bytes by which this process rises, less what the work exempts."""
    before = _status("VmRSS")
    _RESET.write_text("5", encoding="ascii")  # sets the peak back to what is held now
    exempt = work()
    return max(0, _status("VmHWM") - before - exempt)


def _status(name: str) -> int:
    """A figure of this process, in bytes; unlike `ru_maxrss` not taken over from the process that started it."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
