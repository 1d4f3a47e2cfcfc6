"""The loop: divides by global counts, sees the same windows, writes a folder that describes itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from cocomix import (
    AttributionConfig,
    CocomixError,
    CoCoMixForCausalLM,
    ConceptDataset,
    DistillationConfig,
    ExtractConfig,
    ParallelConfig,
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
from cocomix.base.accelerators import known_devices
from cocomix.base.kinds import read_metrics
from cocomix.data import IGNORED_LABEL
from cocomix.evaluation.loss import validation_loss
from cocomix.labels import live
from cocomix.modeling.backbones import DecoderAdapter, supported_families
from cocomix.modeling.teacher import load_teacher
from cocomix.objectives.config import ConceptLossConfig
from cocomix.training import students, trainer
from cocomix.training.batches import Batches
from cocomix.training.students import build_student, with_num_concepts
from tests.conftest import STUDENT, Tiny
from tests.training.helpers import CONCEPT, config, equal_weights, untimed, weights


@pytest.mark.parametrize("kind", ["cocomix", "hidden"])
def test_accumulation_equals_one_large_batch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also where the passes have different numbers of labels."""
    labels_of = ConceptDataset.labels

    def uneven(self: ConceptDataset, windows: np.ndarray) -> torch.Tensor:
        labels = labels_of(self, windows)
        for row, window in enumerate(windows):
            labels[row, : window % 16] = IGNORED_LABEL
        return labels

    monkeypatch.setattr(ConceptDataset, "labels", uneven)
    settings: dict[str, object] = {"num_tokens": 384}
    train(config(tiny, tmp_path / "one", kind, **settings))
    train(config(tiny, tmp_path / "four", kind, micro_batch_size=2, **settings))
    one, four = weights(tmp_path / "one"), weights(tmp_path / "four")
    for name in one:
        # Three AdamW steps: only the order of float32 sums differs, which the first, sign-like steps can magnify.
        torch.testing.assert_close(one[name], four[name], atol=2e-4, rtol=1e-3)
    for line, expected in zip(untimed(tmp_path / "four"), untimed(tmp_path / "one"), strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_activations_checkpointed_give_the_same_bits(tiny: Tiny, tmp_path: Path) -> None:
    train(config(tiny, tmp_path / "plain"))
    train(config(tiny, tmp_path / "saving", parallel=ParallelConfig(activation_checkpointing=True)))
    assert equal_weights(tmp_path / "plain", tmp_path / "saving")
    assert (tmp_path / "plain" / "config.json").read_bytes() == (tmp_path / "saving" / "config.json").read_bytes()


def test_precision_is_a_setting_and_memory_is_not(tiny: Tiny, tmp_path: Path) -> None:
    train(config(tiny, tmp_path, "ntp", num_tokens=128))
    train(config(tiny, tmp_path, "ntp", num_tokens=128, parallel=ParallelConfig("fsdp", activation_checkpointing=True)))
    with pytest.raises(CocomixError, match=r'precision.*"float32".*"bfloat16"'):
        train(config(tiny, tmp_path, "ntp", num_tokens=128, parallel=ParallelConfig(precision="bfloat16")))


def test_all_students_start_equal_and_see_the_same_windows(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, orders = [], []
    read = Batches.at
    for kind in ("ntp", "cocomix", "kd", "pause"):
        seen: list[list[int]] = []

        def batch(self: Batches, windows: np.ndarray, *when: int, seen: list[list[int]] = seen) -> Any:
            seen.append(list(windows))
            return read(self, windows, *when)

        data = TokenDataset(tiny.data)
        with monkeypatch.context() as patch:
            patch.setattr(Batches, "at", batch)
            train(config(tiny, tmp_path / kind, kind, num_tokens=512))
        orders.append(seen)
        run = config(tiny, tmp_path / kind, kind)
        model = build_student(run, data, with_num_concepts(run, 32))
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
    train(config(tiny, tmp_path, "ntp", student=student, num_tokens=8_000))
    losses = [line["validation_loss"] for line in read_metrics(tmp_path) if "validation_loss" in line]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("family", tuple(supported_families()))
def test_students_of_every_family(tiny: Tiny, tmp_path: Path, family: str) -> None:
    student = dataclasses.replace(CONCEPT, family=family)
    train(config(tiny, tmp_path, student=student, num_tokens=256, num_evaluations=1))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.backbone_config.model_type == family


def test_finished_runs_are_recognised_and_others_refused(tiny: Tiny, tmp_path: Path) -> None:
    first = train(config(tiny, tmp_path))
    assert train(config(tiny, tmp_path)) == first
    with pytest.raises(CocomixError, match=r"seed.*0.*1"):
        train(config(tiny, tmp_path, seed=1))
    assert train(config(tiny, tmp_path, seed=1, overwrite=True)).fingerprint != first.fingerprint


def test_mix_only_trains_without_labels(tiny: Tiny, tmp_path: Path) -> None:
    counted = dataclasses.replace(CONCEPT, mixer=CONCEPT.mixer.changed(num_concepts=32))
    off = ConceptLossConfig(weight=0.0)
    train(config(tiny, tmp_path, labels=None, student=counted, concept_loss=off, num_tokens=512))
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.num_concepts == 32


@pytest.mark.parametrize("criterion", ["activation_value", pytest.param("attribution", marks=pytest.mark.slow)])
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
    for module in (students, live):
        monkeypatch.setattr(
            module, "load_teacher", lambda path, *more: loaded.append(path) or load_teacher(path, *more)
        )
    sources: dict[str, object] = {"labels": None, "teacher": tiny.teacher, "sae": tiny.sae, "num_tokens": 256}
    train(config(tiny, tmp_path, **sources, distillation=DistillationConfig(weight=0.5)))
    assert loaded == [tiny.teacher]
    assert {"concept_loss", "distillation_loss"} <= set().union(*read_metrics(tmp_path))


@pytest.mark.slow
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
    with pytest.raises(CocomixError, match=r"concepts.*data.*windows"):
        train(TrainConfig(output=tmp_path / "x", labels=tiny.concepts, student=CONCEPT, **settings))


@pytest.mark.slow
def test_speed_and_the_use_of_a_known_device_are_shown(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(tiny, tmp_path / "unknown", "ntp"))
    assert " GFLOP/s" in capsys.readouterr().err
    monkeypatch.setattr(trainer, "device_spec", lambda _: known_devices()["h100"])
    train(config(tiny, tmp_path / "known", "ntp"))
    assert "MFU 0.0%" in capsys.readouterr().err
    lines = [line for line in read_metrics(tmp_path / "known") if "lm_loss" in line]
    for line, former in zip(lines, [{"train_tokens": 0, "train_seconds": 0}, *lines], strict=False):
        seconds = line["train_seconds"] - former["train_seconds"]
        # Seconds are rounded to three digits.
        expected = pytest.approx((line["train_tokens"] - former["train_tokens"]) / seconds, rel=0.05)
        assert line["tokens_per_second"] == expected
        assert line["model_flops_utilization"] < 1e-4
    assert all("model_flops_utilization" not in line for line in read_metrics(tmp_path / "unknown"))
