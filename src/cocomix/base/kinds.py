"""The kinds of finished folders, and a reader of a run's metrics; importing this file loads nothing heavy."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.base.errors import CocomixError
from cocomix.base.parsing import parse_json

TOKEN_DATASET = "token-dataset"
CONCEPT_DATASET = "concept-dataset"
DISTILLATION_TARGETS = "target-dataset"
ACTIVATION_CACHE = "activation-cache"
SPARSE_AUTOENCODER = "sparse-autoencoder"
TRAINING_RUN = "training-run"
EVALUATION = "evaluation"
INSPECTION = "concept-inspection"
STEERING_SCORE = "steering-score"
STEERING_EXAMPLE = "steering-example"
COMPARISON = "comparison"
DEMO = "demo"

#: File of a training run with one JSON object per line.
METRICS_NAME = "metrics.jsonl"
#: What each of its lines says of the training so far.
METRIC_AXES = ("train_tokens", "train_flops", "train_seconds")
#: Most folders that a sentence names.
MAX_NAMED = 6


@dataclass(frozen=True)
class Kind:
    """What all finished folders of a kind have in common."""

    required: tuple[str, ...] = ()
    """Files, as patterns of `fnmatch`, without which a folder is not finished."""
    aside: tuple[str, ...] = ()
    """Files with times and measurements, on which no later result depends: checked like all others, but not part of the
    fingerprint."""
    by_name: tuple[str, ...] = ()
    """Files, as patterns of `fnmatch`, that a library reads if it finds them: those that the manifest does not list are
    refused. Anything else may be put into a finished folder, and is not read."""


#: What `transformers` reads in a model's folder.
_OF_MODELS = (
    "model*.safetensors*",
    "adapter_*",
    "generation_*.json",
    "*token*.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
KINDS = {
    TOKEN_DATASET: Kind(
        ("tokenizer/tokenizer.json", "train/00000.parquet", "validation/00000.parquet"), by_name=("tokenizer/*",)
    ),
    CONCEPT_DATASET: Kind(("00000.parquet",)),
    DISTILLATION_TARGETS: Kind(("00000.parquet",)),
    ACTIVATION_CACHE: Kind(("00000.safetensors",)),
    SPARSE_AUTOENCODER: Kind(("sae.json", "sae.safetensors"), aside=("quality.json", "quality.html")),
    TRAINING_RUN: Kind(
        ("config.json", "model*.safetensors", "tokenizer.json", METRICS_NAME),
        aside=(METRICS_NAME,),
        by_name=tuple(_OF_MODELS),
    ),
    EVALUATION: Kind(("evaluation.json",)),
    INSPECTION: Kind(("concepts.parquet", "summary.json", "index.html"), aside=("index.html",)),
    STEERING_SCORE: Kind(("steering.json",)),
    STEERING_EXAMPLE: Kind(("steering.json",)),
    COMPARISON: Kind(("comparison.json",)),
    DEMO: Kind(("summary.json", "report.html")),
}


def named_inside(path: Path, file: str, kind: str | None = None) -> str:
    """The end of a sentence about a folder that is not what was expected: the folders inside it that are, if any.

    Args:
        path: the folder, two levels of which are searched.
        file: of this name each of them holds one.
        kind: what that file says of a folder made by cocomix; None: it need not.
    """
    for pattern in (f"*/{file}", f"*/*/{file}"):
        found = [each.parent for each in sorted(path.glob(pattern)) if kind is None or _kind_in(each) == kind]
        if found:
            more = ", …" if len(found) > MAX_NAMED else ""
            return f"; perhaps {' or '.join(map(str, found[:MAX_NAMED]))}{more}"
    return ""


def _kind_in(file: Path) -> Any:
    try:
        header = parse_json(file.read_bytes(), str(file))
    except (CocomixError, OSError):
        return None
    return header.get("kind") if isinstance(header, dict) else None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics, except a last one that is still being written.

    Raises:
        CocomixError: the file can't be read, or a line is no measurement.
    """
    file = run / METRICS_NAME
    try:
        whole = file.read_text(encoding="utf-8").rpartition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise CocomixError(f"{file} can't be read ({error}); is {run} a training run?") from error
    return [_measurement(line, f"{file}, line {number}") for number, line in enumerate(whole.splitlines(), 1)]


def _measurement(text: str, place: str) -> dict[str, Any]:
    value = parse_json(text, place)
    line: dict[str, Any] = value if isinstance(value, dict) else {"not an object": None}
    is_whole = "validation_loss" not in line or line.keys() >= {*METRIC_AXES}
    if not is_whole or not all(map(_is_number, line.values())):
        raise CocomixError(f"{place} is damaged: it is no measurement of a training run; train that run again")
    return line


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that floats can hold."""
    return type(value) in (int, float) and -sys.float_info.max <= value <= sys.float_info.max
