"""Runs with every objective: they resume bit for bit, are what their settings say, and count what teachers cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from cocomix import (
    CocomixError,
    DistillationConfig,
    DistillTargetsConfig,
    HiddenRegressionConfig,
    MultiTokenConfig,
    ParallelConfig,
    TokenDataset,
    TrainConfig,
    distill_targets,
    train,
)
from cocomix.base import artifacts
from cocomix.base.kinds import read_metrics
from cocomix.mixers.config import ConceptConfig
from cocomix.modeling.backbones import adapter_for
from cocomix.modeling.flops import causal_lm_flops_per_token, span_flops_per_token
from cocomix.modeling.teacher import Teacher
from cocomix.objectives.base import Batch
from cocomix.objectives.config import ConceptLossConfig, Schedule
from cocomix.training.batches import Batches
from cocomix.training.students import build_objectives
from cocomix.training.trainable import TrainableModule
from tests.conftest import STUDENT, Tiny

TIMED = ("train_seconds", "tokens_per_second", "model_flops_utilization")
CONCEPT = dataclasses.replace(STUDENT, mixer=ConceptConfig(mixing="interleave_residual", num_active_concepts=4))


@pytest.fixture(scope="module")
def targets(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("targets")
    distill_targets(DistillTargetsConfig(tiny.teacher, tiny.data, output, num_samples=6, num_windows=30))
    return output


def config(tiny: Tiny, output: Path, **settings: object) -> TrainConfig:
    shared: dict[str, object] = {"data": tiny.data, "output": output, "num_tokens": 2560, "num_evaluations": 2}
    shared |= {"checkpoint_every_steps": 3, "max_validation_windows": 4, "num_windows": 30, "student": STUDENT}
    return TrainConfig(**shared | settings)  # type: ignore[arg-type]


def everything(tiny: Tiny, targets: Path) -> dict[str, object]:
    """Every objective, each weight with its schedule; one ends half-way and one before, at the tenth and fourth step."""
    return {
        "student": CONCEPT,
        "labels": tiny.concepts,
        "concept_loss": ConceptLossConfig(schedule="linear"),
        "teacher": tiny.teacher,
        "distillation": DistillationConfig(weight=0.5, schedule="cosine", targets=targets),
        "hidden_regression": HiddenRegressionConfig(weight=0.3, loss="cosine", end=0.5),
        "multi_token": MultiTokenConfig(weight=0.5, schedule="linear", end=0.2),
        "micro_batch_size": 4,
    }


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def losses(run: Path, name: str) -> list[float]:
    return [line[name] for line in read_metrics(run) if name in line]


class KilledError(BaseException):
    """Stands for a kill."""


def test_a_run_with_everything_resumes_bit_for_bit(
    tiny: Tiny, targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = everything(tiny, targets)
    whole = train(config(tiny, tmp_path / "whole", **settings))
    forward, calls = TrainableModule.forward, 0

    def until(self: TrainableModule, batch: Batch, *place: int) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls in (9, 25):
            raise KilledError
        return forward(self, batch, *place)

    monkeypatch.setattr(TrainableModule, "forward", until)
    for _ in range(2):
        with pytest.raises(KilledError):
            train(config(tiny, tmp_path / "parts", **settings))
    parts = train(config(tiny, tmp_path / "parts", **settings))
    wanted, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    # Recall, entropy and dead concepts too: what is counted between two lines is part of a checkpoint.
    lines, again = (
        [{name: value for name, value in line.items() if name not in TIMED} for line in read_metrics(run.path)]
        for run in (whole, parts)
    )
    assert lines == again
    expected = {"lm_loss", "concept_loss", "distillation_loss", "hidden_loss", "concept_recall", "label_entropy"}
    expected |= {"dead_concepts", "gradient_norm", "gradient_norm_backbone", "gradient_norm_mixer"}
    first, last = (line for line in lines if "lm_loss" in line)
    assert expected <= first.keys()
    assert last.keys() == first.keys() - {"hidden_loss"}
    assert whole.settings["inputs"]["distillation_targets"] == artifacts.read(targets, "target-dataset").fingerprint
    # Heads are left behind: the folder holds the student alone.
    assert not any("heads" in name for name in found)


def test_sampled_distillation_teaches_what_the_teacher_itself_would(tiny: Tiny, tmp_path: Path) -> None:
    # Less than an epoch: a student that sees the same draws again fits them, and the value falls below the divergence.
    distill_targets(DistillTargetsConfig(tiny.teacher, tiny.data, tmp_path / "targets", num_samples=6))
    shared: dict[str, object] = {"num_tokens": 2560, "num_windows": None, "seed": 1}
    sampled = DistillationConfig(weight=5.0, targets=tmp_path / "targets")
    train(config(tiny, tmp_path / "sampled", distillation=sampled, **shared))
    online = DistillationConfig(weight=5.0)
    train(config(tiny, tmp_path / "online", teacher=tiny.teacher, distillation=online, **shared))
    first, second = (losses(tmp_path / run, "distillation_loss") for run in ("sampled", "online"))
    assert second[-1] < second[0]
    # 120 positions a step with a cross-entropy's deviation of about a nat over the root of 6 draws: an error below 0.05.
    assert first == pytest.approx(second, abs=0.15)


@pytest.mark.parametrize("schedule", ["linear", pytest.param("cosine", marks=pytest.mark.slow)])
def test_a_weight_of_zero_at_the_end(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: Schedule
) -> None:
    seen: list[float] = []
    weight_at = HiddenRegressionConfig.weight_at

    def noted(self: HiddenRegressionConfig, step: int, num_steps: int) -> float:
        seen.append(weight_at(self, step, num_steps))
        return seen[-1]

    monkeypatch.setattr(HiddenRegressionConfig, "weight_at", noted)
    regression = HiddenRegressionConfig(weight=0.3, schedule=schedule)
    train(config(tiny, tmp_path, teacher=tiny.teacher, hidden_regression=regression))
    assert len(seen) == 20
    assert seen[0] == 0.3
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == pytest.approx(0.0, abs=1e-12)


def test_regression_brings_the_student_closer(tiny: Tiny, tmp_path: Path) -> None:
    regression = HiddenRegressionConfig(weight=1.0)
    train(config(tiny, tmp_path, teacher=tiny.teacher, hidden_regression=regression, num_tokens=5120))
    found = losses(tmp_path, "hidden_loss")
    assert found[-1] < 0.6 * found[0]


def test_what_teachers_cost_is_counted(tiny: Tiny, targets: Path, tmp_path: Path) -> None:
    data = TokenDataset(tiny.data)
    regression = HiddenRegressionConfig(weight=1.0, teacher_layer=0)
    both = config(
        tiny, tmp_path, teacher=tiny.teacher, hidden_regression=regression, distillation=DistillationConfig(weight=1.0)
    )
    objectives = build_objectives(both, Batches(data), torch.device("cpu"))
    teacher = objectives[-1].teacher.model
    assert objectives[1].teacher is teacher  # loaded once
    whole, lower = (
        causal_lm_flops_per_token(teacher, 16),
        span_flops_per_token(objectives[-1].teacher.adapter, 0, 1, 16),
    )
    plain = train(config(tiny, tmp_path / "plain"))
    run = train(dataclasses.replace(both, output=tmp_path / "run"))
    assert plain.facts["teacher_flops"] == 0
    assert run.facts["teacher_flops"] == pytest.approx(2560 * (whole + lower))
    head = 3 * 2 * 16 * 16
    assert run.facts["train_flops_per_token"] == plain.facts["train_flops_per_token"] + head
    stored = DistillationConfig(weight=1.0, targets=targets)
    sampled = train(config(tiny, tmp_path / "sampled", distillation=stored))
    assert sampled.facts["teacher_flops"] == pytest.approx(30 * 16 * whole)


def test_a_teacher_is_compiled_with_its_student(tiny: Tiny, tmp_path: Path) -> None:
    distilled = config(tiny, tmp_path, teacher=tiny.teacher, distillation=DistillationConfig(weight=1.0))
    for compiled in (False, True):
        each = dataclasses.replace(distilled, parallel=ParallelConfig(compile=compiled))
        teacher = build_objectives(each, Batches(TokenDataset(tiny.data)), torch.device("cpu"))[-1].teacher
        assert all((block._compiled_call_impl is not None) == compiled for block in adapter_for(teacher).blocks)


def test_what_has_ended_costs_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Concepts labelled on the fly, distillation and regression end after half of 20 steps; then no teacher runs."""
    student = dataclasses.replace(CONCEPT, mixer=CONCEPT.mixer.changed(mixing="none"))
    inputs = {"student": student, "teacher": tiny.teacher, "sae": tiny.sae, "checkpoint_every_steps": 100}

    def objectives(end: float) -> dict[str, object]:
        return {
            "concept_loss": ConceptLossConfig(weight=1.0, end=end),
            "distillation": DistillationConfig(weight=1.0, end=end),
            "hidden_regression": HiddenRegressionConfig(weight=1.0, end=end),
        }

    calls = {"whole": 0, "half": 0}
    run = "whole"

    def count(kind: type, name: str) -> None:
        original = getattr(kind, name)

        def counted(self: object, *arguments: object, **named: object) -> object:
            calls[run] += 1
            return original(self, *arguments, **named)

        monkeypatch.setattr(kind, name, counted)

    count(LlamaForCausalLM, "forward")  # of the distillation
    count(Teacher, "residuals")  # of labels and regression
    whole = train(config(tiny, tmp_path / "whole", **inputs, **objectives(1.0)))
    run = "half"
    half = train(config(tiny, tmp_path / "half", **inputs, **objectives(0.5)))
    plain = train(config(tiny, tmp_path / "plain", num_tokens=128))
    assert calls["whole"] - calls["half"] == 3 * 10
    assert half.facts["teacher_flops"] == whole.facts["teacher_flops"] / 2
    # In the second half nothing is trained but the plain decoder; the mixer still predicts concepts, forward.
    lasting = plain.facts["train_flops_per_token"] + student.mixer.changed(num_concepts=32).forward_flops(
        16, "algorithmic"
    )
    assert half.facts["train_flops_per_token"] == (whole.facts["train_flops_per_token"] + lasting) / 2
    lines = [line for line in read_metrics(tmp_path / "half") if "lm_loss" in line]
    ended = {"concept_loss", "distillation_loss", "hidden_loss", "concept_recall", "label_entropy"}
    assert [ended & line.keys() for line in lines] == [ended, set()]
    assert half.settings["concept_loss_end"] == half.settings["distillation"]["end"] == 0.5
    assert "end" not in str(whole.settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"end": 0.0}, r"hidden_regression\.end is 0\.0; it must be above 0 and at most 1"),
        ({"end": 1.5}, r"hidden_regression\.end is 1\.5"),
        ({"layer": 2}, r"hidden_regression\.layer.*2.*0.*1"),
        ({"teacher_layer": 2}, r"layer.*2.*teacher.*0.*1"),
    ],
)
def test_settings_that_can_not_be(tiny: Tiny, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    def run() -> None:
        regression = HiddenRegressionConfig(weight=1.0, **settings)
        train(config(tiny, tmp_path / "x", teacher=tiny.teacher, hidden_regression=regression))

    with pytest.raises(CocomixError, match=message):
        run()
    assert not (tmp_path / "x").exists()
