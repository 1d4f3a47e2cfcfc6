"""Every command that takes a finished folder checks it: a flipped bit or an edited number is one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cocomix import CocomixError
from cocomix.base import artifacts
from cocomix.base.kinds import TRAINING_RUN
from cocomix.cli.main import COMMANDS, main
from cocomix.studio.curves_panel import read_curves
from cocomix.studio.model import StudioModel
from cocomix.studio.runs import NamedFolder
from tests.cli.test_mistakes import concept_model
from tests.conftest import Tiny

#: The file that is flipped in each folder.
FILES = {
    "data": "train/00000.parquet",
    "teacher": "model.safetensors",
    "sae": "sae.safetensors",
    "concepts": "00000.parquet",
    "model": "model.safetensors",
}
STUDENT = "--student.hidden-size 16 --student.num-layers 2 --student.num-heads 2 --num-tokens 256"
#: What a command is called with, the folder that is damaged, and the file if it is another one.
CALLS = (
    ("prepare --text CORPUS --tokenizer TEACHER --output OUTPUT", "teacher", "tokenizer.json"),
    ("prepare --text CORPUS --tokenizer DATA/tokenizer --output OUTPUT", "data", "tokenizer/tokenizer.json"),
    ("train-sae --teacher TEACHER --data DATA --layer 0 --output OUTPUT", "teacher"),
    ("train-sae --teacher TEACHER --data DATA --layer 0 --output OUTPUT", "data"),
    ("extract --teacher TEACHER --sae SAE --data DATA --output OUTPUT", "teacher"),
    ("extract --teacher TEACHER --sae SAE --data DATA --output OUTPUT", "sae"),
    ("extract --teacher TEACHER --sae SAE --data DATA --output OUTPUT", "data"),
    ("extract --labels CONCEPTS --data DATA --attribution.control shuffled --output OUTPUT", "concepts"),
    ("distill-targets --teacher TEACHER --data DATA --output OUTPUT", "teacher"),
    ("distill-targets --teacher TEACHER --data DATA --output OUTPUT", "data"),
    (f"train --data DATA {STUDENT} --output OUTPUT", "data"),
    (f"train --data DATA --labels CONCEPTS {STUDENT} --student.mixer concept --output OUTPUT", "concepts"),
    (f"train --data DATA --teacher TEACHER --sae SAE {STUDENT} --student.mixer concept --output OUTPUT", "sae"),
    (f"train --data DATA --teacher TEACHER {STUDENT} --distillation.weight 0.5 --output OUTPUT", "teacher"),
    (f"plan --data DATA {STUDENT}", "data"),
    (f"plan --data DATA --labels CONCEPTS {STUDENT} --student.mixer concept", "concepts"),
    (f"plan --data DATA --teacher TEACHER {STUDENT} --distillation.weight 0.5", "teacher", "config.json"),
    ("eval --model TEACHER --data DATA --output OUTPUT", "teacher"),
    ("eval --model TEACHER --data DATA --output OUTPUT", "data"),
    ("inspect --model MODEL --data DATA --output OUTPUT", "model"),
    ("inspect --model MODEL --data DATA --labels CONCEPTS --output OUTPUT", "concepts"),
    ("inspect --model MODEL --data DATA --teacher TEACHER --sae SAE --output OUTPUT", "sae"),
    ("compare TEACHER", "teacher", "metrics.jsonl"),
    ("generate --model TEACHER --prompt x", "teacher"),
    ("generate --model TEACHER --prompt x", "teacher", "tokenizer.json"),
    ("steer-eval --model MODEL --teacher TEACHER --sae SAE --data DATA --output OUTPUT", "sae"),
    ("steer-eval --model MODEL --teacher TEACHER --sae SAE --data DATA --output OUTPUT", "data"),
)
#: Read no folder of ours; the studio is below.
WITHOUT_INPUTS = {"run", "recipes", "bench", "studio"}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def run_with_concepts(folder: Path) -> Path:
    """As much of a training run as is read before its model is loaded."""
    with artifacts.begin(folder, TRAINING_RUN, {"seed": 0}):
        concept_model(folder)
        for name in ("model.safetensors", "tokenizer.json", "metrics.jsonl"):
            (folder / name).write_text("content")
        artifacts.finish(folder)
    return folder


def test_every_command_is_called() -> None:
    assert {words.split()[0] for words, *_ in CALLS} | WITHOUT_INPUTS == COMMANDS.keys()


@pytest.mark.parametrize(
    "edits_the_manifest", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["flipped", "edited"]
)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0].split()[0]}-{'-'.join(call[1:])}")
def test_a_damaged_folder_is_refused(
    tiny: Tiny,
    tmp_path: Path,
    call: tuple[str, ...],
    edits_the_manifest: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, name, *others = call
    intact = {name: getattr(tiny, name) for name in ("data", "teacher", "sae", "concepts", "corpus")}
    intact["model"] = run_with_concepts(tmp_path / "intact")
    damaged = Path(shutil.copytree(intact[name], tmp_path / name))
    file = damaged / "manifest.json" if edits_the_manifest else damaged / (others[0] if others else FILES[name])
    if edits_the_manifest:
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace('"facts": {', '"facts": {"added": 1,'), encoding="utf-8")
    else:
        flip(file)
    folders = {
        name.upper(): folder for name, folder in (intact | {name: damaged, "output": tmp_path / "output"}).items()
    }
    argv = []
    for word in words.split():
        first, slash, rest = word.partition("/")
        argv.append(f"{folders[first]}{slash}{rest}" if first in folders else word)
    assert main(argv) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {'--tokenizer: ' if words.startswith('prepare') else ''}{file} ")
    assert "damaged" in error
    assert not (tmp_path / "output").exists()


def test_the_studio_refuses_a_damaged_model_and_a_damaged_curve(tiny: Tiny, tmp_path: Path) -> None:
    run = NamedFolder("run", Path(shutil.copytree(tiny.teacher, tmp_path / "run")))
    assert read_curves([run])[0].keys() == {"run"}
    flip(run.path / "metrics.jsonl")
    curves, (problem,) = read_curves([run])
    assert not curves
    assert "metrics.jsonl" in problem
    with pytest.raises(CocomixError, match=r"metrics\.jsonl"):
        StudioModel(run)
