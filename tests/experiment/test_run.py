"""The demo at a size below `smoke`: whole, resumable in every stage, and clear about damage."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cocomix import AttributionConfig, CocomixError, DemoConfig, run_demo
from cocomix.base import artifacts
from cocomix.mixers.config import PauseConfig
from cocomix.tools.demo import pipeline
from cocomix.tools.demo.sizes import StudentRun, default, demo_size, large, smoke
from tests.conftest import CONCEPT, STUDENT, Tiny

TIMES = {"train_seconds", "seconds", "seconds_to_match_ntp"}


@pytest.fixture(autouse=True)
def _tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    students = {
        "ntp": StudentRun("NTP", STUDENT),
        "cocomix": StudentRun("CoCoMix", CONCEPT, AttributionConfig()),
        "paper": StudentRun("Paper", CONCEPT, AttributionConfig("attribution")),
        "pause": StudentRun("Pause", dataclasses.replace(STUDENT, mixer=PauseConfig())),
        "kd": StudentRun("Distillation", STUDENT, distillation_weight=0.5),
    }
    size = dataclasses.replace(
        smoke(),
        vocab_size=300,
        context_length=16,
        teacher=STUDENT,
        teacher_tokens=2048,
        num_latents=32,
        num_active_latents=6,
        sae_tokens=2048,
        sae_tokens_per_update=256,
        students=students,
        student_tokens=2048,
        curve_windows=8,
        report_windows=8,
    )
    monkeypatch.setattr(pipeline, "demo_size", lambda _: size)


def config(tiny: Tiny, output: Path, **settings: Any) -> DemoConfig:
    return DemoConfig(output=output, size="smoke", text=(tiny.corpus,), **settings)


def untimed(value: Any) -> Any:
    """A summary without its times."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key not in TIMES}
    return [untimed(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("demo") / "whole"


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def test_report_and_summary_hold_what_is_promised(tiny: Tiny, undisturbed: Path) -> None:
    report = run_demo(config(tiny, undisturbed))
    assert report == undisturbed / "report.html"
    assert report.stat().st_size > 10_000
    summary = summary_of(undisturbed)
    for name in ("ntp", "cocomix", "paper", "pause", "kd"):
        assert {"validation_loss", "train_tokens", "train_flops", "train_seconds", "num_parameters"} <= summary[
            name
        ].keys()
    assert {"fvu", "loss_recovered", "num_dead"} <= summary["sae"].keys()
    assert {"zero", "mean", "shuffle_batch", "shuffle_position", "oracle"} == summary["probes"].keys()
    assert all("loss_delta" in probe for probe in summary["probes"].values())
    assert "tokens_to_match_ntp" in summary
    assert list((undisturbed / "figures").glob("*.png"))
    before = report.stat().st_mtime_ns
    run_demo(config(tiny, undisturbed))
    assert report.stat().st_mtime_ns == before, "a finished demo is recognised"
    with pytest.raises(CocomixError, match="seed"):
        run_demo(config(tiny, undisturbed, seed=1))


STAGES = (
    "prepare",
    "train",
    "train_sae",
    "extract",
    "evaluate",
    "inspect",
    "steering_example",
    "summarize",
    "write_report",
)
#: Whether the fast run has the folder.
FOLDERS = {
    "data": False,
    "teacher": False,
    "ntp": False,
    "concepts": True,
    "evaluation/ntp": False,
    "inspection": False,
    "report.html": True,
}


def some_slow(cases: dict[str, bool]) -> list[Any]:
    return [pytest.param(case, marks=() if always else pytest.mark.slow) for case, always in cases.items()]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_in_any_stage_it_ends_with_the_same_numbers(
    tiny: Tiny, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    if not (undisturbed / "summary.json").exists():
        run_demo(config(tiny, undisturbed))
    function: Callable[..., Any] = getattr(pipeline, stage)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, stage, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_demo(config(tiny, tmp_path))
    run_demo(config(tiny, tmp_path))
    assert untimed(summary_of(tmp_path)) == untimed(summary_of(undisturbed))


def test_a_damaged_stage_is_named(tiny: Tiny, undisturbed: Path) -> None:
    if not (undisturbed / "summary.json").exists():
        run_demo(config(tiny, undisturbed))
    weights = undisturbed / "teacher" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CocomixError, match=r"teacher/model.safetensors .*delete"):
        run_demo(config(tiny, undisturbed))
    content[-1] ^= 1
    weights.write_bytes(content)
    artifacts.read(undisturbed / "teacher", "training-run")


@pytest.mark.parametrize("stage", some_slow(FOLDERS))
def test_a_deleted_stage_is_made_again_and_fits(tiny: Tiny, undisturbed: Path, stage: str) -> None:
    if not (undisturbed / "summary.json").exists():
        run_demo(config(tiny, undisturbed))
    before = untimed(summary_of(undisturbed))
    path = undisturbed / stage
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run_demo(config(tiny, undisturbed)).exists()
    assert path.exists()
    assert untimed(summary_of(undisturbed)) == before


def test_sizes_are_found_by_name() -> None:
    assert demo_size("default") == default()
    assert list(large().students) == ["ntp", "cocomix", "cocomix-paper", "pause", "kd"]
    with pytest.raises(CocomixError, match=r"size.*'huge'"):
        demo_size("huge")
