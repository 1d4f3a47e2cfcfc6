"""Does every kind of training still give the same bits? A guard for changes that are not meant to change any result.

    python scripts/same_bits.py record DIR                  run everything; write DIR/reference.json and DIR/data
    python scripts/same_bits.py check DIR                   run everything again and compare; exit code 1 on a difference
    python scripts/same_bits.py check DIR --data DIR/data   the same on the recorded windows, however text is prepared by now

Put the code to judge on `PYTHONPATH`. A teacher, an autoencoder, labels and targets are made, then every variant of recipe is
trained at size `tiny` for 20 steps, through the command line alone: what is said to it stands in one table, so that all else
may be renamed. Compared are all values of `metrics.jsonl` but times, and the SHA-256 of every tensor and of every column of
windows, labels and targets, whatever the files around them look like.

All runs share one process and one thread. The CPU and the libraries have a say in the bits too: a reference is worth
something where it was recorded, and `check` says so elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# What this script knows of the package: where its command line is, commands and options, files of a folder.
MAIN = "cocomix.cli.main:main"
TRAIN = "train --recipe gpt2-tiny-{} --data {{data}} --num-tokens 20480 --num-evaluations 4"
EXTRACT = "extract --teacher {teacher} --sae {sae} --data {data}"
BY_ATTRIBUTION, BY_ACTIVATION = "--labels {labels-by-attribution}", "--labels {labels-by-activation}"
FROM_TEACHER, FROM_TARGETS, ON_THE_FLY = "--teacher {teacher}", "--distillation.targets {targets}", "--sae {sae}"
#: Each makes one folder, which later ones name in braces.
COMMANDS = {
    "data": "prepare --text {corpus} --vocab-size 512 --context-length 128 --validation-fraction 0.1",
    "teacher": "train --recipe gpt2-tiny-ntp --data {data} --seed 1 --num-tokens 40960 --num-evaluations 1",
    "sae": "train-sae --teacher {teacher} --data {data} --layer 0 --num-latents 512 --num-tokens 16384 --batch-size 8",
    "labels-by-attribution": f"{EXTRACT} --attribution.criterion attribution",
    "labels-by-activation": f"{EXTRACT} --attribution.criterion activation_value",
    "targets": "distill-targets --teacher {teacher} --data {data}",
    "ntp": TRAIN.format("ntp"),
    "ntp-equal-flops": TRAIN.format("ntp-equal-flops"),
    "kd": f"{TRAIN.format('kd')} {FROM_TEACHER}",
    "cocomix": f"{TRAIN.format('cocomix')} {BY_ATTRIBUTION}",
    "pause": TRAIN.format("pause"),
    "add": f"{TRAIN.format('add')} {BY_ATTRIBUTION}",
    "recommended": f"{TRAIN.format('recommended')} {BY_ACTIVATION}",
    "loss-only": f"{TRAIN.format('loss-only')} {BY_ATTRIBUTION}",
    "mix-only": TRAIN.format("mix-only"),
    "activation-labels": f"{TRAIN.format('activation-labels')} {BY_ACTIVATION}",
    "hidden-regression": f"{TRAIN.format('hidden-regression')} {FROM_TEACHER}",
    "kd-targets": f"{TRAIN.format('kd')} {FROM_TARGETS}",
    "residual": f"{TRAIN.format('cocomix')} {BY_ATTRIBUTION} --student.mixing interleave_residual",
    "stride": f"{TRAIN.format('cocomix')} {BY_ATTRIBUTION} --student.concept-stride 2",
    "llama": f"{TRAIN.format('cocomix')} {BY_ATTRIBUTION} --student.family llama",
    "llama-sequential": f"{TRAIN.format('cocomix')} {BY_ATTRIBUTION} --student.family llama "
    "--student.position-mode sequential --micro-batch-size 4",
    "on-the-fly": f"{TRAIN.format('cocomix')} {FROM_TEACHER} {ON_THE_FLY}",
}
OUTPUT, INTERRUPTED = "--output", 130
METRICS, TENSORS, TABLES, TOKENIZER = "metrics.jsonl", "*.safetensors", "*.parquet", "tokenizer.json"
STEP, TIMES = "step", ("train_seconds", "tokens_per_second", "model_flops_utilization")

#: So many checksums that differ are named, the others counted.
MAX_NAMED = 4

#: What is compared, by name: a checksum, or a metric's [step, value] pairs. Of a run that failed, `failed` and the reason.
Contents = dict[str, Any]


def run_all(work: Path, data: Path | None) -> Iterator[tuple[str, Contents]]:
    """Run every command, and say what it made; one that fails does not keep the others from running."""
    folders = {name: work / name for name in COMMANDS} | {"corpus": write_corpus(work / "corpus.jsonl")}
    for name, command in COMMANDS.items():
        try:
            if name == "data" and data is not None:
                shutil.copytree(data, folders[name])
            else:
                words = [word.format_map(folders) for word in command.split()]
                call([*words, OUTPUT, str(folders[name])], work / "log")
            found = contents_of(folders[name])
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}"}
        yield name, found


def call(words: list[str], log: Path) -> None:
    """One command line, in this process; of what it says, a failure's last line is kept."""
    module, _, function = MAIN.partition(":")
    main = getattr(importlib.import_module(module), function)
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise RuntimeError((log.read_text().splitlines() or ["without a word"])[-1])


def write_corpus(path: Path) -> Path:
    """Pseudo-code with some regularity to learn, of fewer windows than the runs read: each sees more than one epoch."""
    rng = random.Random(0)
    words = ["def", "return", "import", "self", "for", "in", "class", "print", "value", "name", "None", "True"]
    with path.open("w", encoding="utf-8") as file:
        for number in range(80):
            lines = [f"# document {number}: naïve text ☕"]
            for _ in range(30):
                first, count = rng.choice(words), rng.randint(2, 6)
                lines.append(" ".join([first, *(rng.choice(words) for _ in range(count)), first]))
            file.write(json.dumps({"text": "\n".join(lines)}) + "\n")
    return path


def contents_of(folder: Path) -> Contents:
    """Metrics, tensors, columns and tokenizer, whichever are there."""
    import numpy as np
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    found: Contents = {}
    lines = (folder / METRICS).read_text().splitlines() if (folder / METRICS).exists() else []
    for line in map(json.loads, lines):
        for key in line.keys() - {STEP, *TIMES}:
            found.setdefault(f"metric {key}", []).append([line[STEP], line[key]])
    for path in sorted(folder.glob(TENSORS)):
        found |= {f"tensor {name}": checksum(tensor) for name, tensor in load_file(path).items()}
    columns: dict[str, list[Any]] = defaultdict(list)
    for path in sorted(folder.rglob(TABLES)):
        for name, values in pq.read_table(path).to_pydict().items():
            # By value: integers are one however narrow they are stored, and float32 passes through float64 unharmed.
            columns[f"column {(path.parent / name).relative_to(folder)}"].append(np.array(values))
    found |= {name: checksum(np.concatenate(parts)) for name, parts in columns.items()}
    for path in folder.rglob(TOKENIZER):
        found["tokenizer"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(sorted(found.items()))


def checksum(array: Any) -> str:
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()


def differences(expected: Contents, found: Contents) -> Iterator[str]:
    """Names of what differs; of a metric, also from which step on; of many checksums, how many."""
    if "failed" in found or not expected:
        yield found.get("failed", "not in the reference")
        return
    others = []
    for key in sorted(expected.keys() | found.keys()):
        if key not in expected or key not in found:
            yield f"{key} ({'gone' if key in expected else 'new'})"
        elif expected[key] != found[key] and isinstance(found[key], list):
            pairs = zip(expected[key], found[key], strict=False)
            yield f"{key} (step {next((mine[0] for mine, other in pairs if mine != other), 'count')})"
        elif expected[key] != found[key]:
            others.append(key)
    yield from others[:MAX_NAMED]
    if len(others) > MAX_NAMED:
        yield f"and {len(others) - MAX_NAMED} more"


def machine() -> dict[str, str]:
    """What else has a say in the bits."""
    import torch

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    libraries = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    here = {"cpu": names[0] if names else platform.machine(), "vectors": torch.backends.cpu.get_cpu_capability()}
    return {**here, "python": platform.python_version(), **libraries}


def main() -> int:
    parser = argparse.ArgumentParser(description="Does every kind of training still give the same bits?")
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("folder", type=Path, metavar="DIR", help="of the reference")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="token dataset, in place of preparing one")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    is_check, file, here = options.action == "check", options.folder / "reference.json", machine()
    reference: dict[str, Any] = json.loads(file.read_text()) if is_check else {"machine": here, "contents": {}}
    if reference["machine"] != here:
        print(f"warning: recorded on {reference['machine']}, this is {here}: bits may differ for that alone")
    num_bad, expected, made = 0, reference["contents"], {}
    with tempfile.TemporaryDirectory() as work:
        started = time.monotonic()
        for name, found in run_all(Path(work), options.data):
            made[name] = found
            problems = list(differences(expected.get(name, {}) if is_check else found, found))
            num_bad += bool(problems)
            said = "; ".join(problems) or ("equal" if is_check else "recorded")
            print(f"{time.monotonic() - started:6.1f} s  {name}: {said}", flush=True)
        if not is_check and not num_bad:
            target, hidden = options.folder / "data", shutil.ignore_patterns(".*")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(Path(work) / "data", target, ignore=hidden)
            file.write_text(json.dumps({"machine": here, "contents": made}, indent=1) + "\n")
    gone = expected.keys() - made.keys()
    print(
        f"{len(made) - num_bad} of {len(made)} {'equal' if is_check else 'recorded'}",
        *(f"; no {name}" for name in gone),
    )
    return 1 if num_bad or gone else 0


if __name__ == "__main__":
    sys.exit(main())
