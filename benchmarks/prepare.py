"""How fast `prepare` is and what memory it takes: in memory and streamed, with one worker and with several.

    python -m benchmarks.prepare --work runs/prepare --output benchmarks/results/prepare.json

The corpus is synthetic: pseudo-words by Zipf's law, documents of some kilobytes, as JSON-lines. Every run is a process of its
own; its memory is the kernel's high-water mark (VmHWM), of the process that was started and of its workers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from cocomix import PrepareConfig, prepare
from cocomix.base.artifacts import read_json, write_json

NUM_WORDS = 50_000
CONTEXT_LENGTH = 1024
VOCAB_SIZE = 8192
POLL_EVERY_SECONDS = 0.1
IDLE = "import cocomix; cocomix.prepare; print(open('/proc/self/status').read())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for corpus and datasets")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the result")
    parser.add_argument("--num-bytes", type=int, default=200_000_000, help="of text")
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2])
    arguments = parser.parse_args()

    arguments.work.mkdir(parents=True, exist_ok=True)
    corpus = arguments.work / "corpus.jsonl"
    if not corpus.exists():
        write_corpus(corpus, arguments.num_bytes)
    tokenizer = tokenizer_of(arguments.work, corpus)
    runs = {}
    for stream in (False, True):
        for num_workers in arguments.workers:
            name = f"{'streamed' if stream else 'in memory'}, {num_workers} worker{'s' if num_workers > 1 else ''}"
            runs[name] = measure(arguments.work / name.replace(", ", "-"), corpus, tokenizer, stream, num_workers)
            print(name, runs[name], flush=True)
    fingerprints = {(run["stream"], run["fingerprint"]) for run in runs.values()}
    assert len(fingerprints) == 2, "the number of workers changed the result"
    write_json(
        arguments.output,
        {
            "command": "python -m benchmarks.prepare --work runs/prepare --output benchmarks/results/prepare.json",
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
            "num_bytes": sum(run["num_bytes"] for run in list(runs.values())[:1]),
            "vocab_size": VOCAB_SIZE,
            "context_length": CONTEXT_LENGTH,
            "peak_bytes_of_imports": high_water_mark(subprocess.check_output([sys.executable, "-c", IDLE], text=True)),
            "runs": runs,
        },
    )


def write_corpus(path: Path, num_bytes: int) -> None:
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(rng.choice(letters, size)) for size in rng.integers(2, 11, NUM_WORDS)])
    shares = 1 / np.arange(1, NUM_WORDS + 1)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < num_bytes:
            sizes = rng.lognormal(6, 0.8, 200).astype(int) + 20
            chosen = words[rng.choice(NUM_WORDS, sizes.sum(), p=shares / shares.sum())]
            for document in np.split(chosen, np.cumsum(sizes)[:-1]):
                text = " ".join(document)
                written += len(text)
                file.write(json.dumps({"text": text}) + "\n")


def tokenizer_of(work: Path, corpus: Path) -> Path:
    """A tokenizer trained on the start of the corpus, so that no run trains one."""
    prepare(PrepareConfig(work / "tokenizer", (corpus,), vocab_size=VOCAB_SIZE, stream=True, max_bytes=5_000_000))
    return work / "tokenizer" / "tokenizer"


def measure(output: Path, corpus: Path, tokenizer: Path, stream: bool, num_workers: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "cocomix.cli.main", "prepare", "--output", str(output), "--text", str(corpus)]
    command += ["--tokenizer", str(tokenizer), "--context-length", str(CONTEXT_LENGTH), "--overwrite"]
    command += ["--num-workers", str(num_workers), *(["--stream"] if stream else [])]
    subprocess.run(["rm", "-rf", str(output)], check=True)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in (process.pid, *children_of(process.pid)):
            status = Path(f"/proc/{pid}/status")
            if status.exists():
                peaks[pid] = max(peaks.get(pid, 0), high_water_mark(status.read_text()))
        time.sleep(POLL_EVERY_SECONDS)
    seconds = time.perf_counter() - started
    assert process.returncode == 0
    manifest = read_json(output / "manifest.json")
    num_bytes = sum(split["num_bytes"] for split in manifest["facts"]["splits"].values())
    first = peaks.pop(process.pid)
    return {
        "stream": stream,
        "num_workers": num_workers,
        "seconds": seconds,
        "num_bytes": num_bytes,
        "bytes_per_second": num_bytes / seconds,
        "peak_bytes": first,
        "peak_bytes_of_workers": sorted(peaks.values())[-num_workers:] if num_workers > 1 else [],
        "fingerprint": manifest["fingerprint"],
    }


def children_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def high_water_mark(status: str) -> int:
    """Bytes, from what /proc says of a process; 0 of one that is gone."""
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


if __name__ == "__main__":
    main()
