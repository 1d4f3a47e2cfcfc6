"""The loop: resumes bit for bit, divides by global counts, says what is wrong."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from cocomix import (
    AttributionConfig,
    CocomixError,
    CoCoMixForCausalLM,
    ExtractConfig,
    OptimizerConfig,
    PrepareConfig,
    StudentConfig,
    TokenDataset,
    TrainConfig,
    TrainSaeConfig,
    extract,
    prepare,
    train,
    train_sae,
)
from cocomix.base import artifacts
from cocomix.concepts import label_sources
from cocomix.concepts.teacher import load_teacher
from cocomix.evaluation.loss import validation_loss
from cocomix.modeling.backbones import DecoderAdapter
from cocomix.training import loop, objectives
from cocomix.training.config import DistillationConfig, Family
from cocomix.training.metrics import read_metrics
from tests.conftest import STUDENT, Tiny
from tests.modeling.helpers import backbone_config

CONCEPT = dataclasses.replace(STUDENT, mixer="concept")


def config(tiny: Tiny, output: Path, kind: str = "cocomix", **settings: object) -> TrainConfig:
    shared: dict[str, object] = {"data": tiny.data, "output": output, "num_tokens": 2560, "num_evaluations": 4}
    shared |= {"checkpoint_every_steps": 3, "max_validation_windows": 8}
    kinds: dict[str, dict[str, object]] = {
        "ntp": {"student": STUDENT},
        "cocomix": {"student": CONCEPT, "labels": tiny.concepts},
        "kd": {"student": STUDENT, "teacher": tiny.teacher, "distillation": DistillationConfig(weight=0.5)},
        "pause": {"student": dataclasses.replace(STUDENT, mixer="pause")},
    }
    return TrainConfig(**shared | kinds[kind] | settings)  # type: ignore[arg-type]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def untimed(run: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key != "train_seconds"} for line in read_metrics(run)]


class KilledError(Exception):
    """Stands for a kill at a chosen step."""


@pytest.mark.parametrize("kind", ["ntp", "cocomix", "kd", "pause"])
def test_interrupted_and_continued_equals_undisturbed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # Few windows, so that the run crosses the end of an epoch; accumulation, so that a step has several passes.
    settings: dict[str, object] = {"num_windows": 30, "micro_batch_size": 4}
    train(config(tiny, tmp_path / "whole", kind, **settings))

    step_of = loop._Run._train_step
    for stop_at in (4, 11):

        def until(self: loop._Run, stop_at: int = stop_at) -> dict[str, torch.Tensor]:
            if self.step == stop_at:
                raise KilledError
            return step_of(self)

        monkeypatch.setattr(loop._Run, "_train_step", until)
        with pytest.raises(KilledError):
            train(config(tiny, tmp_path / "parts", kind, **settings))
    monkeypatch.setattr(loop._Run, "_train_step", step_of)
    train(config(tiny, tmp_path / "parts", kind, **settings))

    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    assert not (tmp_path / "parts" / "checkpoints").exists()


def test_killed_process_continues_to_the_same_weights(tiny: Tiny, tmp_path: Path) -> None:
    settings: dict[str, object] = {"num_tokens": 12_800, "checkpoint_every_steps": 5, "num_evaluations": 1}
    train(config(tiny, tmp_path / "whole", "cocomix", **settings))
    command = [
        sys.executable,
        "-m",
        "cocomix.cli.main",
        "train",
        "--data",
        str(tiny.data),
        "--labels",
        str(tiny.concepts),
    ]
    command += ["--output", str(tmp_path / "killed"), "--num-tokens", "12800", "--checkpoint-every-steps", "5"]
    command += ["--num-evaluations", "1", "--max-validation-windows", "8", "--student.mixer", "concept"]
    command += ["--student.hidden-size", "16", "--student.num-layers", "2", "--student.num-heads", "2"]
    command += ["--student.num-active-concepts", "4"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists(), "it was too fast to be killed: make the run longer"
    subprocess.run(command, check=True, capture_output=True)
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_accumulation_equals_one_large_batch(tiny: Tiny, tmp_path: Path) -> None:
    settings: dict[str, object] = {"num_tokens": 384}
    train(config(tiny, tmp_path / "one", **settings))
    train(config(tiny, tmp_path / "four", micro_batch_size=2, **settings))
    one, four = weights(tmp_path / "one"), weights(tmp_path / "four")
    for name in one:
        # Three AdamW steps: only the order of float32 sums differs, which the first, sign-like steps can magnify.
        torch.testing.assert_close(one[name], four[name], atol=2e-4, rtol=1e-3)


def test_all_students_start_equal_and_see_the_same_windows(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, orders = [], []
    batch_of = loop._Run._batch
    for kind in ("ntp", "cocomix", "kd", "pause"):
        seen: list[list[int]] = []

        def batch(self: loop._Run, windows: torch.Tensor, seen: list[list[int]] = seen) -> loop.Batch:
            seen.append(list(windows))
            return batch_of(self, windows)

        data = TokenDataset(tiny.data)
        with monkeypatch.context() as patch:
            patch.setattr(loop._Run, "_batch", batch)
            train(config(tiny, tmp_path / kind, kind, num_tokens=512))
        orders.append(seen)
        model = loop.build_student(config(tiny, tmp_path / kind, kind), data, 32)
        starts.append(model.backbone.state_dict())
    assert all(order == orders[0] for order in orders)
    assert all(torch.equal(start[name], starts[0][name]) for start in starts for name in starts[0])


def test_run_folder_holds_model_tokenizer_metrics_and_facts(tiny: Tiny, tmp_path: Path) -> None:
    manifest = train(config(tiny, tmp_path / "concept"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "concept")
    assert isinstance(model, CoCoMixForCausalLM)
    assert model.config.num_concepts == 32
    assert manifest.facts["num_parameters"] == sum(p.numel() for p in model.parameters())
    assert manifest.facts["train_tokens"] == 2560
    assert manifest.facts["teacher_flops"] > 0
    lines = read_metrics(tmp_path / "concept")
    assert [line["train_tokens"] for line in lines if "validation_loss" in line] == [640, 1280, 1920, 2560]
    assert {"lm_loss", "concept_loss", "gradient_norm"} <= lines[0].keys() | lines[-1].keys() | lines[1].keys()
    # Without a mixer the folder is a plain Hugging Face model, which needs no cocomix.
    train(config(tiny, tmp_path / "plain", "ntp"))
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "llama"
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "plain"), LlamaForCausalLM)


def test_gpt2_students_and_learning(tiny: Tiny, tmp_path: Path) -> None:
    student = StudentConfig(family="gpt2", hidden_size=16, num_layers=2, num_heads=2)
    train(config(tiny, tmp_path, "ntp", student=student, num_tokens=16_000))
    losses = [line["validation_loss"] for line in read_metrics(tmp_path) if "validation_loss" in line]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("family", get_args(Family))
def test_students_of_every_family(tiny: Tiny, tmp_path: Path, family: Family) -> None:
    student = dataclasses.replace(CONCEPT, family=family)
    train(config(tiny, tmp_path, student=student, num_tokens=256, num_evaluations=1))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.backbone_config.model_type == family


def test_finished_runs_are_recognised_and_others_refused(tiny: Tiny, tmp_path: Path) -> None:
    first = train(config(tiny, tmp_path))
    assert train(config(tiny, tmp_path)) == first
    with pytest.raises(CocomixError, match=r"other settings .*seed: 0 there, 1 now"):
        train(config(tiny, tmp_path, seed=1))
    assert train(config(tiny, tmp_path, seed=1, overwrite=True)).fingerprint != first.fingerprint


class TestErrors:
    """One sentence each."""

    def test_a_diverging_loss_stops_the_run(self, tiny: Tiny, tmp_path: Path) -> None:
        optimizer = OptimizerConfig(learning_rate=1e30, max_gradient_norm=1e30)
        with pytest.raises(CocomixError, match=r"is not finite at step .*lower learning_rate"):
            train(config(tiny, tmp_path, "ntp", optimizer=optimizer))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"labels": None}, "give --labels, or --teacher and --sae, or set concept_loss_weight to 0"),
            ({"sae": Path("x")}, "need --teacher and --sae, and leave no use for --labels"),
            ({"labels": None, "sae": Path("x")}, "need --teacher and --sae"),
            ({"layer": 1}, "are of labels on the fly"),
            ({"attribution": AttributionConfig("attribution")}, "are of labels on the fly"),
            ({"labels": None, "concept_loss_weight": 0.0}, "without labels needs num_concepts"),
            ({"student": STUDENT}, "labels are given but the mixer is 'none'"),
            ({"micro_batch_size": 3}, "micro_batch_size 3 does not divide batch_size 8"),
            ({"distillation": DistillationConfig(weight=0.5)}, r"distillation\.weight is set but no teacher"),
            ({"num_tokens": 0}, "num_tokens is 0"),
            ({"num_windows": 10**6}, "only [0-9]+ windows are labelled"),
        ],
    )
    def test_contradictions(self, tiny: Tiny, tmp_path: Path, settings: dict[str, object], message: str) -> None:
        with pytest.raises(CocomixError, match=message):
            train(config(tiny, tmp_path, **settings))

    def test_head_size(self) -> None:
        with pytest.raises(CocomixError, match="hidden_size 10 is not divisible by num_heads 4"):
            StudentConfig(family="gpt2", hidden_size=10, num_heads=4)
        with pytest.raises(CocomixError, match="not divisible by twice num_heads 4"):
            StudentConfig(hidden_size=12, num_heads=4)

    def test_a_teacher_of_another_vocabulary(self, tiny: Tiny, tmp_path: Path) -> None:
        teacher = AutoModelForCausalLM.from_config(backbone_config("llama", vocab_size=50))
        teacher.save_pretrained(tmp_path / "teacher")
        with pytest.raises(CocomixError, match=r"has 50 tokens, .* has 300; prepare"):
            train(config(tiny, tmp_path / "run", "kd", teacher=tmp_path / "teacher"))


def test_mix_only_trains_without_labels(tiny: Tiny, tmp_path: Path) -> None:
    train(config(tiny, tmp_path, labels=None, concept_loss_weight=0.0, num_concepts=32, num_tokens=512))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.num_concepts == 32


@pytest.mark.parametrize("criterion", ["attribution", "activation_value"])
def test_labels_on_the_fly_train_as_stored_ones_do(tiny: Tiny, tmp_path: Path, criterion: str) -> None:
    attribution = AttributionConfig(criterion)  # type: ignore[arg-type]
    sources: dict[str, Path] = {"teacher": tiny.teacher, "sae": tiny.sae}
    extract(ExtractConfig(data=tiny.data, output=tmp_path / "labels", attribution=attribution, **sources))
    shared: dict[str, object] = {"num_windows": 30, "micro_batch_size": 4, "num_tokens": 1280}
    stored = train(config(tiny, tmp_path / "stored", **shared, labels=tmp_path / "labels"))
    fly = train(config(tiny, tmp_path / "fly", **shared, labels=None, attribution=attribution, **sources))
    first, second = weights(tmp_path / "stored"), weights(tmp_path / "fly")
    assert all(torch.equal(first[name], second[name]) for name in first)
    # 1,280 tokens on 30 windows of 16: stored labels are computed for 480 of them.
    assert stored.facts["teacher_flops"] / 480 == pytest.approx(fly.facts["teacher_flops"] / 1280)
    assert fly.settings["inputs"]["sae"] == artifacts.fingerprint_of_path(tiny.sae)


def test_one_teacher_serves_labels_and_distillation(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []
    for module in (objectives, label_sources):
        monkeypatch.setattr(module, "load_teacher", lambda path: loaded.append(path) or load_teacher(path))
    sources: dict[str, object] = {"labels": None, "teacher": tiny.teacher, "sae": tiny.sae, "num_tokens": 256}
    train(config(tiny, tmp_path, **sources, distillation=DistillationConfig(weight=0.5)))
    assert loaded == [tiny.teacher]
    assert {"concept_loss", "distillation_loss"} <= set().union(*read_metrics(tmp_path))


def test_isolated_documents_from_text_to_evaluation(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher, labels and students read each document alone; a student learns from what its teacher saw."""
    seen: list[bool] = []
    run_blocks = DecoderAdapter.run_blocks

    def noted(self: DecoderAdapter, *arguments: Any, **more: Any) -> torch.Tensor:
        seen.append(more.get("packed_positions") is not None)
        return run_blocks(self, *arguments, **more)

    monkeypatch.setattr(DecoderAdapter, "run_blocks", noted)
    data = tmp_path / "data"
    shape = {"vocab_size": 300, "context_length": 16, "validation_fraction": 0.2}
    prepare(PrepareConfig(data, (tiny.corpus,), isolate_documents=True, **shape))
    settings = {"data": data, "num_tokens": 1024, "num_evaluations": 1}
    teacher = tmp_path / "teacher"
    train(TrainConfig(output=teacher, student=STUDENT, **settings))
    train_sae(
        TrainSaeConfig(teacher, data, tmp_path / "sae", layer=0, num_latents=32, k=6, num_tokens=1024, batch_size=16)
    )
    extract(ExtractConfig(teacher=teacher, sae=tmp_path / "sae", data=data, output=tmp_path / "labels"))
    train(TrainConfig(output=tmp_path / "stored", labels=tmp_path / "labels", student=CONCEPT, **settings))
    train(
        TrainConfig(
            output=tmp_path / "fly",
            teacher=teacher,
            sae=tmp_path / "sae",
            distillation=DistillationConfig(weight=0.1),
            student=CONCEPT,
            **settings,
        )
    )
    assert all(seen)
    # The saved student, read by transformers' own packing, has the loss that the run measured.
    measured = [line["validation_loss"] for line in read_metrics(teacher) if "validation_loss" in line][-1]
    again = validation_loss(AutoModelForCausalLM.from_pretrained(teacher), TokenDataset(data, "validation"))
    assert again.loss == pytest.approx(measured, abs=1e-5)
    with pytest.raises(CocomixError, match=r"another token dataset than .* \(the windows differs\)"):
        train(TrainConfig(output=tmp_path / "x", labels=tiny.concepts, student=CONCEPT, **settings))
