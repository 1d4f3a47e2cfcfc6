"""Peak memory of pieces of work, each measured in its own process.

    python -m cocomix.tools.bench.memory CASE WORKS

One process imports what it needs and does each kind of work once at a tiny size, which triggers lazy loading in libraries. It
then forks a process for each piece of work, which measures how far its resident memory rises. glibc is told to map every
large block separately, so that freed blocks leave the process at once and the peak counts only memory alive at one time.

On an accelerator it is the peak of what torch has given out there, in this process.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cocomix.base.errors import CocomixError

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: One thread, because a process with a thread pool can't be forked; memory hardly depends on it.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "OMP_NUM_THREADS": "1"}

#: Work to measure: it returns the number of bytes that it still holds at the end and that must not be counted.
Work = Callable[[], int]


def peak_bytes(case: str, works: Sequence[tuple[str, Any]]) -> list[int]:
    """Peak memory of each piece of work, in bytes, beyond what its process held before and what the work exempts.

    Args:
        case: module of this package with `work(variant, shape)`, `SIZES` and the shape's class.
        works: variant and shape of each piece of work; a shape is a dataclass of numbers.

    Raises:
        CocomixError: the system is not Linux, or a process failed.
    """
    if torch.cuda.is_initialized():
        module = importlib.import_module(f"cocomix.tools.bench.{case}")
        return [_allocated(module.work(variant, shape)) for variant, shape in works]
    if not _RESET.exists():
        raise CocomixError("peak memory is read from /proc, which this system lacks: `cocomix bench` needs Linux")
    works_json = json.dumps([(variant, dataclasses.asdict(shape)) for variant, shape in works])
    command = [sys.executable, "-m", "cocomix.tools.bench.memory", case, works_json]
    done = subprocess.run(command, env=os.environ | _ENVIRONMENT, capture_output=True, text=True, check=False)
    peaks = [int(line) for line in done.stdout.split()]
    if done.returncode or len(peaks) != len(works):
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CocomixError(f"peak memory of the case {case!r} could not be measured: {reason}")
    return peaks


def main(argv: list[str]) -> int:
    """Measure and print the bytes of each piece of work, one per line; returns the exit code."""
    case, works = argv[0], json.loads(argv[1])
    module = importlib.import_module(f"cocomix.tools.bench.{case}")
    small = module.SIZES["smoke"]
    for variant in {variant for variant, _ in works}:
        module.work(variant, small)()
    for variant, numbers in works:
        child = os.fork()
        if not child:
            # A forked process maps the libraries' pages only when it touches them.
            module.work(variant, small)()
            print(_measured(module.work(variant, type(small)(**numbers))), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(f"work {variant!r} ended with {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
            return 1
    return 0


def _measured(work: Work) -> int:
    """Bytes by which this process's memory rises, less what the work exempts."""
    before = _status("VmRSS")
    _RESET.write_text("5", encoding="ascii")  # resets the peak to the current value
    exempt = work()
    return max(0, _status("VmHWM") - before - exempt)


def _allocated(work: Work) -> int:
    """Bytes by which the accelerator's memory rises, less what the work exempts."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    exempt = work()
    return max(0, torch.cuda.max_memory_allocated() - before - exempt)


def _status(name: str) -> int:
    """A memory figure of this process, in bytes; unlike `ru_maxrss` it is not inherited from the parent process."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
