"""What others add in one file, registered with one line, takes part in every command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cocomix.base.kinds import read_metrics
from tests.conftest import Tiny

PLUGINS = Path(__file__).parent / "plugins"
SHAPE = ("--student.hidden-size", 16, "--student.num-layers", 2, "--student.num-heads", 2)
SHAPE += ("--num-tokens", 1280, "--num-evaluations", 2)


def cocomix(*words: object, plugins: tuple[str, ...] = (), code: int = 0) -> str:
    """A command in a process of its own, so that nothing stays registered here; returns what it printed."""
    named = [word for plugin in plugins for word in ("--plugin", str(PLUGINS / plugin))]
    command = [sys.executable, "-m", "cocomix.cli.main", *named, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_a_mixer_and_an_objective_of_ones_own_in_every_command(tiny: Tiny, tmp_path: Path) -> None:
    toys = ("toy_mixer.py", "toy_objective.py")
    importance = tmp_path / "importance.json"
    importance.write_text(json.dumps([1.0 + window % 3 for window in range(64)]))
    own = ["--student.mixer", "low_rank", "--student.rank", 3, "--logit-size.weight", 0.01]
    own += ["--logit-size.importance", importance, *SHAPE]

    listed = cocomix("train", "--student.mixer", "low_rank", "--help", plugins=toys)
    assert "low_rank" in listed
    assert "--student.rank" in listed
    assert "--logit-size.importance" in listed

    planned = json.loads(cocomix("plan", "--data", tiny.data, *own, "--json", plugins=toys))
    assert planned["student"]["rank"] == 3
    assert planned["num_parameters"] - planned["num_active_parameters"] == 0  # all of it is active
    plain = json.loads(cocomix("plan", "--data", tiny.data, *SHAPE, "--json"))
    difference = (
        planned[key]["algorithmic"]["training"] - plain[key]["algorithmic"]["training"] for key in ["flops_per_token"]
    )
    assert next(difference) == 3 * 4 * 3 * 16

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    cocomix("train", "--data", tiny.data, "--output", whole, *own, plugins=toys)
    stop_early = ["--checkpoint-every-steps", 3]
    interrupt = "import sys; from tests.test_plugins import interrupted; sys.exit(interrupted(sys.argv[1:]))"
    arguments = ["train", "--data", tiny.data, "--output", parts, *own, *stop_early]
    named = [word for plugin in toys for word in ("--plugin", str(PLUGINS / plugin))]
    root = Path(__file__).parents[1]
    stopped = subprocess.run([sys.executable, "-c", interrupt, *named, *map(str, arguments)], check=False, cwd=root)
    assert stopped.returncode == 143
    assert not (parts / "manifest.json").exists()
    cocomix(*arguments, plugins=toys)
    first, second = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(bool((first[name] == second[name]).all()) for name in first)
    assert any(name.startswith("mixer.") for name in first)
    assert all("logit_size_loss" in line for line in read_metrics(whole) if "lm_loss" in line)

    settings = json.loads((whole / "settings.json").read_text())["settings"]
    assert settings["student"]["rank"] == 3
    assert settings["logit_size"]["weight"] == 0.01
    assert "importance" in settings["inputs"]

    evaluated = cocomix("eval", "--model", whole, "--data", tiny.data, "--output", tmp_path / "eval", plugins=toys)
    assert "eval" in evaluated
    cocomix("compare", whole, parts, "--output", tmp_path / "comparison")
    reloaded = f"import cocomix, tests.plugins.toy_mixer; print(cocomix.load_causal_lm({str(whole)!r}).mixer.config)"
    done = subprocess.run([sys.executable, "-c", reloaded], capture_output=True, text=True, check=True, cwd=root)
    assert "rank=3" in done.stdout
    assert "low_rank" in cocomix("eval", "--model", whole, "--data", tiny.data, "--output", tmp_path / "no", code=1)


def test_a_family_of_ones_own_trains(tiny: Tiny, tmp_path: Path) -> None:
    words = ["train", "--data", tiny.data, "--labels", tiny.concepts, "--output", tmp_path / "run", *SHAPE]
    words += ["--student.family", "stablelm", "--student.mixer", "concept", "--student.num-active-concepts", 4]
    assert "stablelm" in cocomix(*words, code=1)
    cocomix(*words, plugins=("toy_family.py",))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["backbone_config"]["model_type"] == "stablelm"


@pytest.mark.parametrize("plugin", ["missing.py", "no_such_module"])
def test_a_plugin_that_is_not_there_is_named(plugin: str) -> None:
    said = cocomix("--plugin", plugin, "recipes", code=2)
    assert plugin in said
    assert "Traceback" not in said


def interrupted(words: list[str]) -> int:
    """The command line, sent SIGTERM in its fifth step."""
    from cocomix.cli.main import main
    from tests.training.helpers import in_step, terminate

    with in_step(4, terminate):
        return main(words)
