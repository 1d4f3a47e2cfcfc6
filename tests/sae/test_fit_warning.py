"""A dictionary that fits is passed over in silence; a wrong place or normalisation is named."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from cocomix import CocomixError, SparseAutoencoder, SparseAutoencoderConfig
from cocomix.sae.quality import reconstruction_fvu, sae_fit_warning

D, C, K = 16, 64, 4


def fitting(normalize_input: str = "none") -> tuple[SparseAutoencoder, torch.Tensor]:
    """A dictionary of four orthonormal bases and a residual stream made of its rows, [2, 30, D]; its FVU is near zero."""
    sae = SparseAutoencoder(SparseAutoencoderConfig(D, C, K, normalize_input=normalize_input)).requires_grad_(False)
    directions = torch.eye(D).repeat(C // D, 1)
    sae.decoder_weight.copy_(directions)
    sae.encoder_weight.copy_(directions)
    sae.encoder_bias[D:] = -100.0  # one basis is enough
    sae.encoder_bias[:D] = -0.1
    active = torch.rand(2, 30, D).topk(K, dim=-1).indices
    h = torch.zeros(2, 30, D).scatter(-1, active, 3 + torch.rand(2, 30, K))
    return sae, h


def test_fvu_equals_its_definition_without_first_positions() -> None:
    sae, h = fitting()
    wild = h.clone()
    wild[:, 0] = 1e4
    rest = h[:, 1:]
    expected = (rest - sae(rest)).pow(2).sum() / (rest - rest.mean((0, 1))).pow(2).sum()
    assert reconstruction_fvu(sae, wild) == pytest.approx(float(expected), rel=1e-4)


def test_a_dictionary_that_fits_is_not_warned_about() -> None:
    assert sae_fit_warning(*fitting()) is None


def test_another_place_is_warned_about() -> None:
    sae, h = fitting()
    rotation = torch.linalg.qr(torch.randn(D, D)).Q
    warning = sae_fit_warning(sae, h @ rotation)
    assert warning is not None
    assert "FVU" in warning
    assert "normalize_input" not in warning  # no other normalisation would fit either


@pytest.mark.parametrize("wrong", ["layer_norm", "constant_norm_rescale"])
def test_a_wrong_normalisation_is_named(wrong: str) -> None:
    sae, h = fitting()
    sae.encoder_bias[:D] = -2.0  # what is small after a wrong normalisation is lost
    sae.decoder_weight[:D] *= 2
    assert sae_fit_warning(sae, h) is None
    sae.config = dataclasses.replace(sae.config, normalize_input=wrong)
    warning = sae_fit_warning(sae, h)
    assert warning is not None
    assert "normalize_input 'none'" in warning


def test_a_missing_factor_on_the_input_is_named() -> None:
    sae, h = fitting()
    # Fits tokens of mean norm sqrt(D), and reads tokens of which the encoder's bias leaves nothing.
    sae.fold_input_scale(float(h.norm(dim=-1).mean()) / D**0.5)
    warning = sae_fit_warning(sae, h / 50)
    assert warning is not None
    assert re.search(r"fold_input_scale\(|normalize_input 'constant_norm_rescale'", warning)


def test_a_transcoder_is_named() -> None:
    config = SparseAutoencoderConfig(D, C, K, normalize_input="none", subtract_decoder_bias=False, transcode=True)
    warning = sae_fit_warning(SparseAutoencoder(config), torch.randn(1, 8, D))
    assert warning is not None
    assert "transcoder" in warning


def test_a_reconstruction_that_is_not_finite_is_refused() -> None:
    sae, h = fitting()
    sae.decoder_weight.mul_(3e38)
    with pytest.raises(CocomixError, match="FVU"):
        sae_fit_warning(sae, h)
