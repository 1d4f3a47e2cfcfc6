"""The sparse autoencoder: its training and its quality."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cocomix import (
    CocomixError,
    PrepareConfig,
    SparseAutoencoder,
    TokenDataset,
    TrainSaeConfig,
    prepare,
    train_sae,
)
from cocomix.concepts import sae_training
from cocomix.concepts.sae_quality import sae_quality
from cocomix.concepts.sae_training import geometric_median
from cocomix.concepts.teacher import Teacher, load_teacher
from tests.conftest import Tiny


def test_geometric_median_minimises_summed_distance() -> None:
    x = torch.cat([torch.randn(50, 3), torch.full((5, 3), 100.0)])
    median = geometric_median(x, num_iterations=200).requires_grad_(True)
    (gradient,) = torch.autograd.grad((x - median).norm(dim=-1).sum(), median)
    assert gradient.norm() < 1e-3
    assert median.norm() < 5  # the mean is near 9: outliers do not move the median


def config(tiny: Tiny, output: Path, **settings: object) -> TrainSaeConfig:
    shared: dict[str, object] = {"teacher": tiny.teacher, "data": tiny.data, "output": output, "layer": 0}
    shared |= {"num_latents": 32, "k": 6, "num_tokens": 4096, "batch_size": 16, "tokens_per_update": 64}
    return TrainSaeConfig(**shared | settings)  # type: ignore[arg-type]


def test_training_lowers_the_unexplained_variance_and_keeps_unit_rows(tiny: Tiny, tmp_path: Path) -> None:
    short = train_sae(config(tiny, tmp_path / "short", num_tokens=256)).facts["quality"]
    long = train_sae(config(tiny, tmp_path / "long", num_tokens=40_000)).facts["quality"]
    assert long["fvu"] < 0.6 * short["fvu"]
    assert long["l0"] <= 6
    rows = SparseAutoencoder.from_pretrained(tmp_path / "long").decoder_weight
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(32))


def test_dead_latents_are_revived_by_the_auxiliary_loss(tiny: Tiny, tmp_path: Path) -> None:
    shared: dict[str, object] = {"num_latents": 64, "k": 2, "num_tokens": 20_000}
    left = train_sae(config(tiny, tmp_path / "left", **shared, num_auxiliary_latents=0)).facts["quality"]["num_dead"]
    helped = train_sae(config(tiny, tmp_path / "helped", **shared, dead_after_tokens=512)).facts["quality"]["num_dead"]
    assert left > 0
    assert helped < left


def test_interrupted_and_continued_equals_undisturbed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, object] = {"checkpoint_every_steps": 3, "dead_after_tokens": 500}
    train_sae(config(tiny, tmp_path / "whole", **settings))
    step_of = sae_training._Run._train_step

    def until(self: sae_training._Run) -> torch.Tensor:
        if self.step == 8:
            raise KeyboardInterrupt
        return step_of(self)

    with monkeypatch.context() as patch:
        patch.setattr(sae_training._Run, "_train_step", until)
        with pytest.raises(KeyboardInterrupt):
            train_sae(config(tiny, tmp_path / "parts", **settings))
    train_sae(config(tiny, tmp_path / "parts", **settings))
    whole, parts = (load_file(tmp_path / name / "sae.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_quality_equals_its_definition(tiny: Tiny) -> None:
    teacher, sae = Teacher(load_teacher(tiny.teacher), 0), SparseAutoencoder.from_pretrained(tiny.sae)
    data = TokenDataset(tiny.data, "validation")
    quality = sae_quality(teacher, sae, data)
    ids = data.input_ids(range(data.num_windows))
    h = teacher.residual(ids)
    expected = (h - sae(h)).pow(2).sum() / (h - h.mean((0, 1))).pow(2).sum()
    assert quality.fvu == pytest.approx(float(expected), rel=1e-4)
    assert quality.num_tokens == ids.numel()
    loss = torch.nn.functional.cross_entropy(teacher.model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert quality.loss == pytest.approx(float(loss), rel=1e-4)
    recovered = 1 - (quality.spliced_loss - quality.loss) / (quality.mean_ablated_loss - quality.loss)
    assert quality.loss_recovered == pytest.approx(recovered)


def test_a_teacher_of_another_vocabulary_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    prepare(
        PrepareConfig(tmp_path / "data", (tiny.corpus,), vocab_size=280, context_length=16, validation_fraction=0.2)
    )
    with pytest.raises(CocomixError, match=r"has 300 tokens, .* has 280; prepare the data with"):
        train_sae(config(tiny, tmp_path / "sae", data=tmp_path / "data"))
