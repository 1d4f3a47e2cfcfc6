"""Training by every activation: losses and gradients as written out, thresholds, and what comes out of a run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import get_args

import pytest
import torch

from cocomix import CocomixError, SparseAutoencoder, SparseAutoencoderConfig
from cocomix.sae import train as sae_training
from cocomix.sae.chosen import Encoded
from cocomix.sae.config import TrainedActivation
from cocomix.sae.rules import RULES, BatchTopK, JumpReLU
from cocomix.sae.train import train_autoencoders
from cocomix.sae.update import SaeUpdater
from tests.conftest import Tiny
from tests.reference.sae_training import written_out_batch_top_k, written_out_jump_gradients
from tests.sae.test_train import config

N, D, C, K = 11, 6, 19, 3


def made(activation: str) -> tuple[SparseAutoencoder, torch.Tensor]:
    """A dictionary, and residual streams of which it makes something."""
    k = None if activation == "jumprelu" else K
    sae = SparseAutoencoder(SparseAutoencoderConfig(D, C, k, activation=activation)).double()
    with torch.no_grad():
        for parameter in (sae.encoder_weight, sae.encoder_bias, sae.decoder_weight, sae.decoder_bias):
            parameter.add_(0.3 * torch.randn_like(parameter))
        if sae.threshold is not None:
            sae.threshold.fill_(1.0)
    return sae, torch.randn(N, D).double() + 1


def dense(sae: SparseAutoencoder, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, _, _ = sae.normalize(h)
    return x, (x - sae.decoder_bias) @ sae.encoder_weight.T + sae.encoder_bias


def fvu_of(sae: SparseAutoencoder, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    error = x - (c @ sae.decoder_weight + sae.decoder_bias)
    return error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()


def test_every_trained_activation_has_a_rule() -> None:
    assert tuple(RULES) == get_args(TrainedActivation)


def test_batchtopk_equals_the_written_out_loss() -> None:
    sae, h = made("batchtopk")
    fvu, _, penalty, l0 = SaeUpdater(sae, K, dead_after_tokens=99, num_auxiliary_latents=0)._losses(h, 1.0)
    x, z = dense(sae, h)
    c = written_out_batch_top_k(z, K)
    expected = fvu_of(sae, x, c)
    torch.testing.assert_close(fvu, expected)
    assert penalty == 0.0
    assert float(l0) == pytest.approx(int((c > 0).sum()) / N)
    leaves = list(sae.parameters())
    torch.testing.assert_close(torch.autograd.grad(fvu, leaves), torch.autograd.grad(expected, leaves))
    # One step of the running mean, from 1.
    least = c[c > 0].min() if int((c > 0).sum()) == K * N else torch.zeros(())
    assert float(sae.threshold) == pytest.approx(1 + BatchTopK.RATE * (float(least) - 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("progress", [0.0, 0.05, 1.0])
def test_jumprelu_equals_the_written_out_loss_and_gradients(progress: float) -> None:
    sae, h = made("jumprelu")
    assert sae.threshold is not None
    updater = SaeUpdater(sae, K, dead_after_tokens=99, num_auxiliary_latents=0)
    fvu, _, penalty, l0 = updater._losses(h, progress)
    x, z = dense(sae, h)
    c = torch.where(z > 1.0, z, 0.0).detach().requires_grad_(True)
    expected = fvu_of(sae, x, c)
    num_active = int((c > 0).sum())
    weight = min(1.0, progress / 0.1)
    torch.testing.assert_close(fvu, expected)
    assert float(penalty) == pytest.approx(weight * (num_active / N / K - 1) ** 2)
    assert float(l0) == pytest.approx(num_active / N)
    by_c, by_decoder = torch.autograd.grad(expected, (c, sae.decoder_weight), retain_graph=True)
    by_number = torch.tensor(weight * 2 * (num_active / N / K - 1) / (N * K)).double()
    by_z, by_threshold = written_out_jump_gradients(
        z.detach(), sae.threshold.detach(), by_c, by_number, JumpReLU.BANDWIDTH
    )
    (by_encoder,) = torch.autograd.grad(z, sae.encoder_weight, by_z)
    found = torch.autograd.grad(fvu + penalty, (sae.threshold, sae.encoder_weight, sae.decoder_weight))
    torch.testing.assert_close(found, (by_threshold, by_encoder, by_decoder))
    assert by_threshold.any()


@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu"])
def test_thresholds_start_where_k_latents_are_active_on_average(activation: str) -> None:
    sae, h = made(activation)
    SaeUpdater(sae, K, dead_after_tokens=99, num_auxiliary_latents=0).start(h, N)
    encoded = Encoded(sae, sae.encoder_input(h)[0])
    assert sae.threshold is not None
    # The smallest of the k N is at the threshold itself.
    assert int((encoded.z > sae.threshold).sum()) == K * N - 1
    assert int((sae.encode(h).values > 0).sum()) == K * N - 1


def test_thresholds_stay_above_zero() -> None:
    sae, h = made("jumprelu")
    assert sae.threshold is not None
    updater = SaeUpdater(sae, C, dead_after_tokens=99, num_auxiliary_latents=0)  # all should be active
    for _ in range(30):
        updater.update(h, N, 0.3)
    assert float(sae.threshold.detach().min()) == 0.0


@pytest.mark.parametrize("activation", ["batchtopk", pytest.param("jumprelu", marks=pytest.mark.slow)])
def test_a_run_is_read_back_and_resumes_to_the_bit(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activation: str
) -> None:
    settings: dict[str, object] = {"activation": activation, "checkpoint_every_steps": 3, "num_tokens": 2048}
    (whole,) = train_autoencoders(config(tiny, tmp_path / "whole", **settings))
    with monkeypatch.context() as patch:
        calls, step = itertools.count(1), sae_training._Run._train_step

        def until(*arguments: object) -> object:
            if next(calls) == 5:
                raise KeyboardInterrupt
            return step(*arguments)  # type: ignore[arg-type]

        patch.setattr(sae_training._Run, "_train_step", until)
        with pytest.raises(KeyboardInterrupt):
            train_autoencoders(config(tiny, tmp_path / "parts", **settings))
    (parts,) = train_autoencoders(config(tiny, tmp_path / "parts", **settings))
    assert parts.fingerprint == whole.fingerprint
    assert whole.settings["activation"] == activation
    sae = SparseAutoencoder.from_pretrained(tmp_path / "whole")
    assert sae.config.activation == activation
    assert sae.threshold is not None
    assert not sae.threshold.requires_grad
    assert 1 < whole.facts["quality"]["l0"] < 12  # k is 6


def test_warm_up_and_decay_are_linear() -> None:
    def rates(**settings: float) -> list[float]:
        run = config_of(**settings)
        return [sae_training._part_of_rate(run, step, 10) for step in range(10)]

    def config_of(**settings: float) -> sae_training.TrainSaeConfig:
        paths = (Path("teacher"), Path("data"), Path("output"))
        return sae_training.TrainSaeConfig(*paths, **settings)  # type: ignore[arg-type]

    assert rates() == [1.0] * 9 + [0.5]
    assert rates(warmup_fraction=0.4, decay_fraction=0.0) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)
    assert rates(warmup_fraction=0.0, decay_fraction=1.0) == pytest.approx([1 - step / 10 for step in range(10)])
    with pytest.raises(CocomixError, match=r"decay_fraction is 1\.5"):
        config_of(decay_fraction=1.5)
