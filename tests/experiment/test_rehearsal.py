"""The paper's experiment from end to end at toy size, with stand-ins for what has to be downloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.base.artifacts import read_json
from tests.conftest import Tiny
from tests.evaluation.test_task_files import write_all
from tests.experiment.files import write

D, C, K = 16, 64, 8
CONTEXT = 32


def write_teacher(folder: Path, tokenizer: Path) -> None:
    """In place of GPT-2."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=CONTEXT, n_embd=D, n_layer=3, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


def write_dictionary(file: Path) -> None:
    """In place of OpenAI's, in its format."""
    torch.manual_seed(1)
    encoder = torch.randn(C, D)
    tensors = {
        "pre_bias": torch.zeros(D),
        "encoder.weight": encoder,
        "latent_bias": torch.zeros(C),
        "decoder.weight": encoder.T / encoder.norm(dim=-1),
    }
    statistics = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
    tensors |= {name: torch.zeros(C) for name in statistics}
    torch.save({**tensors, "activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}, file)


@pytest.mark.slow
def test_the_papers_experiment_runs_from_end_to_end(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    write_teacher(tmp_path / "gpt2", tiny.data / "tokenizer")
    write_dictionary(tmp_path / "5.pt")
    (tmp_path / "benchmarks").mkdir()
    toy = {
        "base": "paper-69m",
        "layer": 1,
        "launch": "torchrun --standalone --nproc-per-node 2",
        "data": {
            "dataset": str(tiny.corpus),
            "tokenizer": str(tmp_path / "gpt2"),
            "context_length": CONTEXT,
            "validation_fraction": 0.2,
            "num_workers": 1,
        },
        "teacher": str(tmp_path / "gpt2"),
        "sae": str(tmp_path / "5.pt"),
        "labels": {"precision": "float32", "batch_size": 8},
        "train": {
            "student": {"hidden_size": D, "num_layers": 4, "num_heads": 2},
            "num_tokens": 2048,
            "batch_size": 4,
            "micro_batch_size": 1,
            "num_evaluations": 2,
            "max_validation_windows": 4,
            "parallel": {"precision": "float32", "device": "cpu"},
        },
        "evaluation": {"task_data": str(write_all(tmp_path / "benchmarks"))},
        "inspection": {"num_measured": 8, "max_windows": 16, "num_probe_windows": 4},
        "plan": None,
    }
    file, root = write(tmp_path / "toy.yaml", toy), tmp_path / "toy"
    command = [sys.executable, "-m", "cocomix.cli.main", "run", str(file), "--output", str(root)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(root / "report.html")]
    students = ["ntp", "kd", "pause", "cocomix", "recommended"]
    assert read_json(root / "summary.json")["students"] == students
    for name in students:
        tasks = read_json(root / "evaluation" / name / "evaluation.json")["tasks"]
        assert tasks.keys() == {"lambada", "wikitext", "hellaswag", "piqa", "siqa", "arc_easy", "winogrande"}
    assert "CoCoMix (ours)" in (root / "report.html").read_text()
    assert (root / "comparison" / "comparison.html").exists()
