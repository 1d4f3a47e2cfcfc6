"""The sparse autoencoder: its formula, its training and its quality."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from cocomix import (
    CocomixError,
    PrepareConfig,
    SparseAutoencoder,
    SparseAutoencoderConfig,
    TokenDataset,
    TrainSaeConfig,
    prepare,
    train_sae,
)
from cocomix.concepts import sae as sae_module
from cocomix.concepts import sae_training
from cocomix.concepts.sae import Latents
from cocomix.concepts.sae_quality import sae_quality
from cocomix.concepts.sae_training import geometric_median
from cocomix.concepts.teacher import Teacher, load_teacher
from tests.conftest import Tiny


def dense(latents: Latents, num_latents: int) -> torch.Tensor:
    """Latents as a dense tensor; unused slots add nothing."""
    empty = torch.zeros(*latents.values.shape[:-1], num_latents, dtype=latents.values.dtype)
    return empty.scatter_add(-1, latents.indices, latents.values)


def make(activation: str, num_active_latents: int | None = None, **settings: object) -> SparseAutoencoder:
    config = SparseAutoencoderConfig(6, 20, num_active_latents, activation=activation, **settings)  # type: ignore[arg-type]
    sae = SparseAutoencoder(config).double()
    with torch.no_grad():
        for tensor in sae.state_dict().values():
            tensor.normal_()
    return sae


ACTIVATIONS = pytest.mark.parametrize(
    ("activation", "k"), [("topk", 4), ("groupmax", 4), ("batchtopk", 4), ("relu", None), ("jumprelu", None)]
)


@pytest.mark.parametrize("normalize_input", ["none", "layer_norm", "constant_norm_rescale"])
@ACTIVATIONS
def test_encode_and_decode_equal_the_written_out_formula(activation: str, k: int | None, normalize_input: str) -> None:
    sae, h = make(activation, k, normalize_input=normalize_input), torch.randn(3, 5, 6).double()
    mean, std, epsilon = torch.zeros(3, 5, 1).double(), torch.ones(3, 5, 1).double(), 0.0
    if normalize_input == "layer_norm":
        mean, std, epsilon = h.mean(-1, True), h.std(-1, keepdim=True), 1e-5
    elif normalize_input == "constant_norm_rescale":
        std = h.pow(2).mean(-1, True).sqrt()
    pre = ((h - mean) / (std + epsilon) - sae.decoder_bias) @ sae.encoder_weight.T + sae.encoder_bias
    kept = torch.ones_like(pre)
    if activation == "topk":
        kept = torch.zeros_like(pre).scatter(-1, pre.topk(4).indices, 1.0)
    elif activation == "groupmax":
        kept = torch.cat([part == part.amax(-1, keepdim=True) for part in pre.split(5, dim=-1)], dim=-1).double()
    elif sae.threshold is not None:
        kept = (pre > sae.threshold).double()
    c = (pre * kept).relu()
    latents = sae.encode(h)
    torch.testing.assert_close(dense(latents, 20), c)
    torch.testing.assert_close(latents.std, std)
    torch.testing.assert_close(sae(h), (c @ sae.decoder_weight + sae.decoder_bias) * std + mean)


@ACTIVATIONS
def test_chunks_change_nothing_and_nothing_larger_is_made_or_kept(
    activation: str, k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, h = make(activation, k), torch.randn(11, 6).double()
    whole = sae.encode(h)
    monkeypatch.setattr(sae_module, "CHUNK_ELEMENTS", 3 * 20)
    largest, kept = 0, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] != (6,):  # weights and residual streams
                    largest = max(largest, tensor.numel())
            return result

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with Watch(), saved_tensors_hooks(keep, lambda tensor: tensor):
        parts = sae.encode(h)
    torch.testing.assert_close(dense(parts, 20), dense(whole, 20))
    assert parts.indices.shape == whole.indices.shape
    assert largest <= max(6 * 20, 11 * (whole.indices.shape[-1] + 1), 3 * 20)
    assert {shape for shape in kept if shape[-1:] == (20,)} <= {(6, 20)}  # the weight; no pre-activations in a graph


@pytest.mark.parametrize(("activation", "k"), [("topk", 4), ("jumprelu", None)])
def test_latents_are_differentiable(activation: str, k: int | None) -> None:
    sae, h = make(activation, k), torch.randn(4, 6).double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda h: sae.encode(h).values, h)


def test_padding_never_names_an_active_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, h = make("relu"), torch.randn(9, 6).double()
    monkeypatch.setattr(sae_module, "CHUNK_ELEMENTS", 20)  # a token a chunk: all but the fullest are padded
    latents = sae.encode(h)
    assert latents.indices.shape[-1] == (latents.values > 0).sum(-1).max()
    overwritten = torch.zeros(9, 20).double().scatter(-1, latents.indices, latents.values)
    assert torch.equal(overwritten, dense(latents, 20))


def test_no_tokens_and_no_active_latents_are_fine() -> None:
    sae = make("jumprelu", normalize_input="none")
    assert sae.encode(torch.zeros(0, 6).double()).values.shape == (0, 1)
    sae.encoder_bias.data.fill_(-100.0)
    h = torch.randn(2, 3, 6).double()
    latents = sae.encode(h)
    assert latents.values.shape == (2, 3, 1)
    torch.testing.assert_close(sae(h), sae.decoder_bias * latents.std + latents.mean)
    assert latents.padded(4).values.shape == (2, 3, 4)
    torch.testing.assert_close(sae.decode(latents.padded(4)), sae(h))


def test_contradictory_configurations_are_refused() -> None:
    with pytest.raises(CocomixError, match="num_active_latents is 21; it must lie between 1 and num_latents"):
        SparseAutoencoderConfig(6, 20, 21)
    with pytest.raises(CocomixError, match="num_active_latents is None"):
        SparseAutoencoderConfig(6, 20)
    with pytest.raises(CocomixError, match="divisible"):
        SparseAutoencoderConfig(6, 20, 3, activation="groupmax")
    with pytest.raises(CocomixError, match="has no effect"):
        make("topk", 4).fold_input_scale(2.0)


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
