"""The kinds of finished folders, and a reader of a run's metrics; importing this file loads nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cocomix.base.errors import CocomixError

TOKEN_DATASET = "token-dataset"
CONCEPT_DATASET = "concept-dataset"
DISTILLATION_TARGETS = "target-dataset"
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


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics, except a last one that is still being written.

    Raises:
        CocomixError: the file can't be read.
    """
    try:
        whole = (run / METRICS_NAME).read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise CocomixError(
            f"{run / METRICS_NAME} can't be read ({error}); is {run} a finished training run?"
        ) from error
