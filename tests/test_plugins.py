"""What others add in one file, registered with one line, takes part in every command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig

import cocomix
from cocomix.base.kinds import read_metrics
from cocomix.cli.main import main
from cocomix.mixers import config as mixers
from cocomix.mixers.concept import ConceptMixer
from cocomix.mixers.config import ConceptConfig
from cocomix.modeling import backbones
from tests.conftest import Tiny

ROOT = Path(__file__).parents[1]
SHAPE = ("--student.hidden-size", 16, "--student.num-layers", 2, "--student.num-heads", 2)
SHAPE += ("--num-tokens", 1280, "--num-evaluations", 2)


def plugins(*names: str) -> list[str]:
    return [word for name in names for word in ("--plugin", str(ROOT / "tests" / "plugins" / name))]


def outcomes(*commands: list[Any] | dict[str, Any]) -> list[tuple[int, str]]:
    """Exit code and output of each command line."""
    given = [command if isinstance(command, dict) else {"argv": command} for command in commands]
    words = [command | {"argv": list(map(str, command["argv"]))} for command in given]
    argv = [sys.executable, "-m", "tests.plugins.run_commands", json.dumps(words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [(code, text) for code, text in json.loads(done.stdout)]


def test_a_mixer_and_an_objective_of_ones_own_in_every_command(tiny: Tiny, tmp_path: Path) -> None:
    toys = plugins("toy_mixer.py", "toy_objective.py")
    importance = tmp_path / "importance.json"
    importance.write_text(json.dumps([1.0 + window % 3 for window in range(64)]))
    own = ["--student.mixer", "low_rank", "--student.rank", 3, "--logit-size.weight", 0.01, *SHAPE]
    own += ["--logit-size.importance", importance]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stopping = ["train", "--data", tiny.data, "--output", parts, *own, "--checkpoint-every-steps", 3]
    results = outcomes(
        [*toys, "train", "--student.mixer", "low_rank", "--help-all"],
        ["plan", "--data", tiny.data, *own, "--json"],
        ["plan", "--data", tiny.data, *SHAPE, "--json"],
        ["train", "--data", tiny.data, "--output", whole, *own],
        {"argv": stopping, "interrupt_at": 4},
        stopping,
        ["eval", "--model", whole, "--data", tiny.data, "--output", tmp_path / "evaluation"],
        ["compare", f"whole={whole}", f"parts={parts}", "--output", tmp_path / "comparison"],
    )
    assert [code for code, _ in results] == [0, 0, 0, 0, 143, 0, 0, 0], results

    listed = results[0][1]
    assert "concept, low_rank" in listed
    assert "--student.rank" in listed
    assert "--logit-size.importance" in listed

    planned, plain = (json.loads(text) for _, text in results[1:3])
    assert planned["student"]["rank"] == 3
    assert planned["num_active_parameters"] - plain["num_active_parameters"] == 2 * 3 * 16
    flops, others = (made["flops_per_token"]["algorithmic"]["training"] for made in (planned, plain))
    assert flops - others == 3 * 4 * 3 * 16  # a forward, and a backward of twice its cost

    first, second = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(bool((first[name] == second[name]).all()) for name in first)
    assert any(name.startswith("mixer.") for name in first)
    assert all("logit_size_loss" in line for line in read_metrics(whole) if "lm_loss" in line)
    settings = json.loads((whole / "settings.json").read_text())["settings"]
    assert settings["student"]["rank"] == 3
    assert settings["logit_size"]["weight"] == 0.01
    assert "importance" in settings["inputs"]
    assert (tmp_path / "comparison" / "comparison.json").exists()

    reload = f"import cocomix, tests.plugins.toy_mixer; print(cocomix.load_causal_lm({str(whole)!r}).mixer.config)"
    done = subprocess.run([sys.executable, "-c", reload], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "rank=3" in done.stdout


@pytest.fixture
def _forgotten() -> Iterator[None]:
    """What a test registers here is unknown again after it."""
    before = set(mixers.MIXERS), set(backbones._ADAPTERS)
    yield
    for registry, names in zip((mixers.MIXERS, backbones._ADAPTERS), before, strict=True):
        for name in set(registry) - names:
            del registry[name]


@pytest.mark.usefixtures("_forgotten")
def test_a_family_of_ones_own_trains(tiny: Tiny, tmp_path: Path) -> None:
    words = ["train", "--data", tiny.data, "--labels", tiny.concepts, "--output", tmp_path / "run", *SHAPE]
    words += ["--student.family", "stablelm", "--student.mixer", "concept", "--student.num-active-concepts", 4]
    argv = list(map(str, words))
    assert main(argv) == 1
    assert main([*plugins("toy_family.py"), *argv]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["backbone_config"]["model_type"] == "stablelm"


@pytest.mark.parametrize("name", ["missing.py", "no_such_module"])
def test_plugins_that_are_missing_are_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plugin", name, "recipes"]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.usefixtures("_forgotten")
def test_a_mixing_with_weights_is_a_concept_mixer_with_another_mix() -> None:
    """The example of docs/design.md: its own class is built, although its settings derive from a built-in mixer's."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    block = next(part for part in text.split("```python\n")[1:] if "GateConfig" in part).split("```")[0]
    names = {"dataclass": dataclass, "Any": Any, "ClassVar": ClassVar, "cocomix": cocomix, "torch": torch, "nn": nn}
    names |= {"ConceptMixer": ConceptMixer, "ConceptConfig": ConceptConfig, "__name__": __name__}
    exec(block, names)
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = cocomix.CoCoMixConfig(LlamaConfig(**sizes), mixer="gate", num_concepts=6, num_active_concepts=2)
    model = cocomix.CoCoMixForCausalLM(config)
    assert type(model.mixer) is names["GateMixer"]
    assert model.mixer.gate.count_nonzero() == 0
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 9)
