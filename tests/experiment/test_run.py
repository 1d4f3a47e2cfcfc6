"""An experiment at a size below the smoke demo's: whole, resumable in every stage, and clear about damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cocomix import CocomixError, RunConfig, run
from cocomix.base import artifacts
from cocomix.base.kinds import TRAINING_RUN
from cocomix.experiment import command
from tests.conftest import Tiny
from tests.experiment.files import DEMO, write

TIMES = {"train_seconds", "seconds", "seconds_to_match_ntp"}
#: Stages that are interrupted; the fast run knows none.
STAGES = ("data", "teacher", "sae", "concepts", "ntp", "evaluation/ntp", "inspection", "report")
#: What is deleted, and whether the fast run does it.
DELETED = {"data": False, "teacher": False, "ntp": False, "concepts": False, "evaluation/ntp": False}
DELETED |= {"inspection": False, "report.html": True}


def untimed(value: Any) -> Any:
    """A summary without its times."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key not in TIMES}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished experiment."""
    root = tmp_path_factory.mktemp("experiment")
    config = RunConfig(str(write(root / "tiny.yaml", DEMO)), output=root / "whole", text=(tiny.corpus,))
    run(config)
    return config


def test_report_and_summary_hold_what_is_promised(
    undisturbed: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = undisturbed.output
    assert root is not None
    summary = summary_of(root)
    for name in ("ntp", "cocomix", "paper", "kd"):
        facts = {"validation_loss", "train_tokens", "train_flops", "train_seconds", "num_parameters"}
        assert facts <= summary[name].keys()
    assert summary["students"] == ["ntp", "cocomix", "paper", "kd"]
    assert {"fvu", "loss_recovered", "num_dead"} <= summary["sae"].keys()
    assert {"zero", "mean", "shuffle_batch", "shuffle_position", "oracle"} == summary["probes"].keys()
    assert "tokens_to_match_ntp" in summary
    assert list((root / "figures").glob("*.png"))
    # The paper's labels are another dataset of the same windows.
    windows = {read(root / name)["num_windows"] for name in ("concepts", "concepts-paper", "ntp", "cocomix", "paper")}
    assert len(windows) == 1

    report = root / "report.html"
    before = report.stat().st_mtime_ns
    monkeypatch.setattr(command, "_run_stage", only_report)
    assert run(undisturbed) == report
    assert report.stat().st_mtime_ns == before, "a finished report is recognised"
    shown = capsys.readouterr().err
    assert shown.count(", done") == 14
    assert f"cocomix studio {root}" in shown
    with pytest.raises(CocomixError, match="seed: 0 there, 1 now"):
        run(RunConfig(undisturbed.file, output=root, text=undisturbed.text, seed=1))


def only_report(experiment: Any, stage: Any) -> None:
    if stage.name == "report":
        RUN_STAGE(experiment, stage)


RUN_STAGE = command._run_stage


def read(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = artifacts.read_header(folder)["settings"]
    return settings


def test_a_damaged_stage_is_named(undisturbed: RunConfig) -> None:
    assert undisturbed.output is not None
    weights = undisturbed.output / "teacher" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CocomixError, match=r"teacher/model.safetensors .*delete"):
        run(undisturbed)
    content[-1] ^= 1
    weights.write_bytes(content)
    artifacts.read(undisturbed.output / "teacher", TRAINING_RUN)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if fast else pytest.mark.slow) for name, fast in DELETED.items()]
)
def test_a_deleted_stage_is_made_again_and_fits(undisturbed: RunConfig, name: str) -> None:
    assert undisturbed.output is not None
    before = untimed(summary_of(undisturbed.output))
    path = undisturbed.output / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    part = RunConfig(undisturbed.file, undisturbed.output, undisturbed.text, only=("report",))
    run(part if path.name == "report.html" else undisturbed)
    assert path.exists()
    assert untimed(summary_of(undisturbed.output)) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_interrupted_in_any_stage_it_ends_with_the_same_numbers(
    undisturbed: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert undisturbed.output is not None
    config = RunConfig(undisturbed.file, tmp_path / "run", undisturbed.text)

    def interrupted(experiment: Any, stage: Any) -> None:
        RUN_STAGE(experiment, stage)
        if stage.name == name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "_run_stage", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    run(config)
    assert untimed(summary_of(tmp_path / "run")) == untimed(summary_of(undisturbed.output))


@pytest.mark.slow
def test_stages_in_processes_of_their_own_do_the_same(undisturbed: RunConfig, tmp_path: Path) -> None:
    """Draws of the teacher, live labels and a pretrained student too, which the demo has not."""
    assert undisturbed.output is not None
    root = undisturbed.output
    values = {
        "launch": "torchrun --standalone --nproc-per-node 1",
        "layer": 0,
        "data": str(root / "data"),
        "teacher": str(root / "teacher"),
        "sae": str(root / "sae"),
        "labels": "live",
        "targets": {"num_samples": 4},
        "train": {"num_tokens": 512, "num_evaluations": 1, "max_validation_windows": 4},
        "students": {
            "upcycled": {
                "student": {
                    "pretrained": str(root / "teacher"),
                    "mixer": "concept",
                    "start_from_sae": str(root / "sae"),
                }
            },
            "kd": {"distillation": {"weight": 0.1}, "student": DEMO["train"]["student"]},
        },
        "comparison": {},
    }
    file = write(tmp_path / "more.yaml", values)
    assert run(RunConfig(str(file), output=tmp_path / "more")) == tmp_path / "more" / "comparison" / "comparison.html"
    config = yaml.safe_load((tmp_path / "more" / "kd" / "config.yaml").read_text())
    assert config["distillation"]["targets"] == str(tmp_path / "more" / "targets")
    live = yaml.safe_load((tmp_path / "more" / "upcycled" / "config.yaml").read_text())
    assert live["sae"] == str(root / "sae")
    assert live["labels"] is None
