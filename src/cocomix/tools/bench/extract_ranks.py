"""Extraction of labels for one small dataset by one process, and by two that share the work.

    python -m cocomix.tools.bench.extract_ranks FOLDER OUTPUT SHAPE

This command is one rank, under `torchrun` or not; the first rank prints the seconds since all ranks were ready.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel

from cocomix.base.errors import CocomixError
from cocomix.base.ranks import joined_ranks
from cocomix.data.config import PrepareConfig
from cocomix.data.prepare import prepare
from cocomix.data.token_dataset import TOKENIZER_FOLDER, TokenDataset
from cocomix.data.tokenizer import load_tokenizer
from cocomix.labels.config import AttributionConfig, ExtractConfig
from cocomix.labels.extract import extract
from cocomix.mixers.config import NoMixerConfig
from cocomix.sae.model import SparseAutoencoder, SparseAutoencoderConfig
from cocomix.tools.bench.students import student_config

CONTEXT, WIDTH, LAYER = 128, 256, 1


@dataclass(frozen=True)
class RanksShape:
    """Sizes of the measurement; the teacher has width 256 and 4 blocks, and windows have 128 tokens."""

    num_windows: int = 384
    windows_per_shard: int = 24
    repetitions: int = 3


def time_ranks(folder: Path, shape: RanksShape) -> dict[str, list[float]]:
    """Seconds taken by `one` process and by `two`, for each repetition, in turn.

    Raises:
        CocomixError: a process failed.
    """
    _prepare(folder, shape)
    times: dict[str, list[float]] = {"one": [], "two": []}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for repetition in range(shape.repetitions):
        for name, starter in (("one", []), ("two", torchrun)):
            output = folder / f"labels-{name}-{repetition}"
            argv = ["-m", "cocomix.tools.bench.extract_ranks", str(folder), str(output), json.dumps(asdict(shape))]
            command = [sys.executable, *starter, *argv]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                raise CocomixError(f"extraction by {name} process(es) could not be measured: {reason}")
            times[name].append(float(done.stdout.split()[-1]))
    return times


def _prepare(folder: Path, shape: RanksShape) -> None:
    """Make a dataset of random words, and a teacher and an autoencoder with random weights."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 7))) for _ in range(2000)]
    documents = [{"text": " ".join(rng.choices(words, k=CONTEXT))} for _ in range(2 * shape.num_windows + 20)]
    text = folder / "text.jsonl"
    text.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    prepare(PrepareConfig(output=folder / "data", text=(text,), vocab_size=1024, context_length=CONTEXT))
    data = TokenDataset(folder / "data")
    config = student_config(
        width=WIDTH, num_blocks=4, num_heads=4, vocab_size=data.vocab_size, num_positions=CONTEXT, mixer=NoMixerConfig()
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config.backbone_config).save_pretrained(folder / "teacher")
    load_tokenizer(folder / "data" / TOKENIZER_FOLDER).save_pretrained(folder / "teacher")
    SparseAutoencoder(SparseAutoencoderConfig(WIDTH, 4096, 16)).save_pretrained(folder / "sae")


def main(argv: list[str]) -> int:
    """Extract as one rank; returns the exit code."""
    folder, output, shape = Path(argv[0]), Path(argv[1]), RanksShape(**json.loads(argv[2]))
    torch.set_num_threads(1)
    config = ExtractConfig(
        data=folder / "data",
        output=output,
        teacher=folder / "teacher",
        sae=folder / "sae",
        layer=LAYER,
        attribution=AttributionConfig(criterion="attribution"),
        num_windows=shape.num_windows,
        windows_per_shard=shape.windows_per_shard,
    )
    with joined_ranks() as ranks:
        ranks.wait()
        started = time.perf_counter()
        extract(config)
        if ranks.is_first:
            print(time.perf_counter() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
