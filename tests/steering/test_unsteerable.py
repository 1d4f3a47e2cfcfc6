"""Models that have nothing to steer: every tool says in one sentence what does not exist for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cocomix import CocomixError, CoCoMixForCausalLM, load_causal_lm
from cocomix.cli.main import main
from cocomix.studio.model import StudioModel
from cocomix.studio.rendering import render
from cocomix.studio.runs import NamedFolder, find_runs
from tests.conftest import Tiny

#: Settings of a mixer, and why it can't be steered.
KINDS = {
    "pause": ({"mixer": "pause"}, "has no concepts (mixer 'pause')"),
    "loss only": (
        {"mixing": "none", "num_concepts": 32, "num_active_concepts": 4},
        "predicts its concepts but does not mix them in (mixing 'none')",
    ),
    "plain": ({"mixer": "none"}, "is a plain decoder"),
}


@pytest.fixture(scope="module")
def models(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind, by its name."""
    root = tmp_path_factory.mktemp("unsteerable")
    for kind, (settings, _) in KINDS.items():
        made = CoCoMixForCausalLM.from_backbone(load_causal_lm(tiny.teacher), **settings)
        made.saved_form.save_pretrained(root / kind)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tiny.teacher / name, root / kind / name)
    return root


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        *((command, kind) for command in ("generate", "eval", "steer-eval") for kind in ("pause", "loss only")),
        ("steer-eval", "plain"),
        ("inspect", "pause"),  # a model that does not mix its concepts in has cards: tests/tools/inspect
        ("inspect", "plain"),
    ],
)
def test_every_command_says_why(
    tiny: Tiny, models: Path, tmp_path: Path, kind: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = ["--data", str(tiny.data)], ["--output", str(tmp_path / "out")]
    options = {
        "generate": ["--prompt", "def", "--steer", "3=2", "--mode", "set"],
        "eval": [*data, *output, "--probes", "--max-windows", "4"],
        "steer-eval": [*data, *output, "--teacher", str(tiny.teacher), "--sae", str(tiny.sae)],
        "inspect": [*data, *output, "--max-windows", "4"],
    }
    assert main([command, "--model", str(models / kind), *options[command]]) == 1
    (sentence,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert (KINDS[kind][1] if command != "inspect" else "has no concepts") in sentence
    assert not (tmp_path / "out").exists()


def test_the_studio_says_why(models: Path) -> None:
    runs = find_runs([models])
    assert [run.name.rpartition("/")[2] for run in runs.models] == ["loss only"]
    model = StudioModel(NamedFolder("loss only", models / "loss only"))
    assert len(model.read("def")) > 0
    why = KINDS["loss only"][1]
    with pytest.raises(CocomixError, match="there is nothing to steer"):
        model.next_tokens("def", {3: 1.0}, "add")
    note = render("pins_note", unsteerable=model.model.config.mixer.unsteerable, has_pins=True, unit="", mode="add")
    assert why in note.unescape()
    with pytest.raises(CocomixError, match="no model with a concept mixer"):
        find_runs([models / "pause"])
