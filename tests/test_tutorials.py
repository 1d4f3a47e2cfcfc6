"""The tutorials do what they say, at toy size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from examples.tutorials import your_model, your_text

from cocomix.base.kinds import read_metrics
from tests.conftest import Tiny

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def test_from_a_text_to_a_steered_continuation(tiny: Tiny, tmp_path: Path) -> None:
    said = your_text.main((tiny.corpus,), tmp_path, num_tokens=2048)
    assert said.startswith("as it is: The ")
    assert "\ntoward " in said
    assert (tmp_path / "inspection" / "index.html").exists()


def test_a_model_becomes_steerable_and_stays_what_it_was(tiny: Tiny, tmp_path: Path) -> None:
    rows = your_model.strongest(tiny.teacher, tiny.sae, 0, "def return")
    assert "def return".startswith("".join(token for token, _, _ in rows))
    assert rows
    assert all(0 <= concept < 32 and score > 0 for _, concept, score in rows)
    model = your_model.main(tiny.teacher, tiny.sae, 0, tiny.corpus, tmp_path, num_tokens=512)
    assert (model / "concept_directions.safetensors").exists()


def test_the_plugin_trains_from_the_command_line(tiny: Tiny, tmp_path: Path) -> None:
    plugin = ROOT / "examples" / "tutorials" / "change_the_method.py"
    words = ["--data", tiny.data, "--labels", tiny.concepts, "--output", tmp_path / "run", "--student.mixer", "gate"]
    words += ["--sharpness.weight", "0.01", "--num-tokens", "512", "--student.hidden-size", "16"]
    words += ["--student.num-layers", "2", "--student.num-heads", "2", "--student.num-active-concepts", "4"]
    command = [sys.executable, "-m", "cocomix.cli.main", "--plugin", plugin, "train", *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(line.get("sharpness_loss", 0.0) > 0 for line in read_metrics(tmp_path / "run"))
