"""Files of tiny experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

#: The demo with four students.
DEMO: dict[str, Any] = {
    "base": "demo-smoke",
    "layer": 0,
    "data": {"vocab_size": 300, "context_length": 16, "validation_fraction": 0.2},
    "train": {
        "num_tokens": 2048,
        "max_validation_windows": 8,
        "student": {"hidden_size": 16, "num_layers": 2, "num_heads": 2},
    },
    "teacher": {"num_tokens": 2048},
    "sae": {"num_latents": 32, "k": 6, "num_tokens": 2048, "tokens_per_update": 256, "max_validation_windows": 8},
    "students": {
        "cocomix": {"student": {"num_active_concepts": 4}},
        "paper": {
            "student": {"mixer": "concept", "num_active_concepts": 4},
            "attribution": {"criterion": "attribution"},
        },
        "kd": {"distillation": {"weight": 0.5}},
    },
    "evaluation": {"max_windows": 8},
    "inspection": {"max_windows": 16, "num_probe_windows": 2},
}


def write(file: Path, values: Any) -> Path:
    """A file of an experiment, with values as JSON has them."""
    file.write_text(yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False), encoding="utf-8")
    return file
