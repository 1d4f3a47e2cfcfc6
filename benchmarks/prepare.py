"""How fast `prepare` is and what memory it takes: streamed and not, with one worker and with several.

    python -m benchmarks.prepare

The corpus is synthetic: pseudo-words by Zipf's law, documents of some kilobytes, as JSON-lines. Every run is a process of its
own; its memory is the kernel's high-water mark (VmHWM), of the process that was started and of its workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import options, store
from cocomix import PrepareConfig, prepare
from cocomix.base.artifacts import read_json

#: Bytes of text, and with how many workers.
WORKERS = {50_000_000: (1, 2), 200_000_000: (1,)}
NUM_WORDS = 50_000
CONTEXT_LENGTH = 1024
VOCAB_SIZE = 8192
POLL_EVERY_SECONDS = 0.1
IDLE = "import cocomix; cocomix.prepare; print(open('/proc/self/status').read())"


def main() -> None:
    arguments = options("prepare", __doc__, "work").parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(arguments.work)
    runs = [
        measure(arguments.work, num_bytes, tokenizer, stream, num_workers)
        for num_bytes, workers in WORKERS.items()
        for stream in (False, True)
        for num_workers in workers
    ]
    fingerprints = {(run["corpus_bytes"], run["fingerprint"]) for run in runs}
    assert len(fingerprints) == len(WORKERS), "the number of workers, or streaming, changed the result"
    imports = high_water_mark(subprocess.check_output([sys.executable, "-c", IDLE], text=True))
    settings = {"vocab_size": VOCAB_SIZE, "context_length": CONTEXT_LENGTH}
    store(arguments.output, "prepare", peak_bytes_of_imports=imports, runs=runs, **settings)


def corpus_of(work: Path, num_bytes: int) -> Path:
    """JSON-lines of that many characters, made once."""
    path = work / f"corpus-{num_bytes}.jsonl"
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(rng.choice(letters, size)) for size in rng.integers(2, 11, NUM_WORDS)])
    shares = 1 / np.arange(1, NUM_WORDS + 1)
    written = 0
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        while written < num_bytes:
            sizes = rng.lognormal(6, 0.8, 200).astype(int) + 20
            chosen = words[rng.choice(NUM_WORDS, sizes.sum(), p=shares / shares.sum())]
            for document in np.split(chosen, np.cumsum(sizes)[:-1]):
                text = " ".join(document)
                written += len(text)
                file.write(json.dumps({"text": text}) + "\n")
    return partial.rename(path)


def tokenizer_of(work: Path) -> Path:
    """A tokenizer trained on the start of a corpus, so that no run trains one."""
    corpus = corpus_of(work, min(WORKERS))
    prepare(PrepareConfig(work / "tokenizer", (corpus,), vocab_size=VOCAB_SIZE, stream=True, max_bytes=5_000_000))
    return work / "tokenizer" / "tokenizer"


def measure(work: Path, corpus_bytes: int, tokenizer: Path, stream: bool, num_workers: int) -> dict[str, Any]:
    """Time and memory of one run, in a process of its own."""
    output = work / "data"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "cocomix.cli.main", "prepare", "--output", str(output)]
    command += ["--text", str(corpus_of(work, corpus_bytes)), "--tokenizer", str(tokenizer)]
    command += ["--context-length", str(CONTEXT_LENGTH), "--num-workers", str(num_workers)]
    command += ["--stream"] if stream else []
    cpu_seconds_before, started = cpu_seconds_of_children(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in (process.pid, *children_of(process.pid)):
            with contextlib.suppress(OSError):  # it may just have ended
                peaks[pid] = max(peaks.get(pid, 0), high_water_mark(Path(f"/proc/{pid}/status").read_text()))
        time.sleep(POLL_EVERY_SECONDS)
    seconds = time.perf_counter() - started
    assert process.returncode == 0
    manifest = read_json(output / "manifest.json")
    first = peaks.pop(process.pid)
    run = {
        "corpus_bytes": corpus_bytes,
        "stream": stream,
        "num_workers": num_workers,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds_of_children() - cpu_seconds_before,
        "load_average": os.getloadavg()[0],
        "peak_bytes": first,
        "peak_bytes_of_workers": max(peaks.values()) if num_workers > 1 else None,
        "fingerprint": manifest["fingerprint"],
    }
    print(run, flush=True)
    return run


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def high_water_mark(status: str) -> int:
    """Bytes, from what /proc says of a process; 0 of one that is gone."""
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


if __name__ == "__main__":
    main()
