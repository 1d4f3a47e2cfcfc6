"""The sparse autoencoder: its formula, its file format, its training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix import (
    CocomixError,
    SparseAutoencoder,
    SparseAutoencoderConfig,
)


def make(normalize_input: bool = True) -> SparseAutoencoder:
    sae = SparseAutoencoder(SparseAutoencoderConfig(6, 20, 4, normalize_input)).double()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
    return sae


@pytest.mark.parametrize("normalize_input", [True, False])
def test_encode_and_decode_equal_the_written_out_formula(normalize_input: bool) -> None:
    sae, h = make(normalize_input), torch.randn(3, 5, 6).double()
    mean, std = (h.mean(-1, True), h.std(-1, keepdim=True) + 1e-5) if normalize_input else (0.0, 1.0)
    pre = ((h - mean) / std - sae.decoder_bias) @ sae.encoder_weight.T + sae.encoder_bias
    kept = torch.zeros_like(pre).scatter(-1, pre.topk(4).indices, 1.0)
    c = (pre * kept).relu()
    expected = (c @ sae.decoder_weight + sae.decoder_bias) * std + mean
    latents = sae.encode(h)
    torch.testing.assert_close(torch.zeros_like(pre).scatter(-1, latents.indices, latents.values), c)
    torch.testing.assert_close(sae(h), expected)


def test_saved_and_loaded_equals_original(tmp_path: Path) -> None:
    sae = SparseAutoencoder(SparseAutoencoderConfig(6, 20, 4))
    sae.save_pretrained(tmp_path)
    loaded = SparseAutoencoder.from_pretrained(tmp_path)
    h = torch.randn(7, 6)
    assert torch.equal(loaded(h), sae(h))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=r"has no sae.json"):
        SparseAutoencoder.from_pretrained(tmp_path)
    SparseAutoencoder(SparseAutoencoderConfig(6, 20, 4)).save_pretrained(tmp_path)
    weights, settings = tmp_path / "sae.safetensors", tmp_path / "sae.json"
    good = load_file(weights)
    for bad in (
        good | {"extra": torch.ones(1)},
        {name: tensor for name, tensor in good.items() if name != "decoder_bias"},
        good | {"decoder_weight": good["decoder_weight"].T.contiguous()},
    ):
        save_file(bad, weights)
        with pytest.raises(CocomixError, match="does not fit its configuration"):
            SparseAutoencoder.from_pretrained(tmp_path)
    weights.write_bytes(b"not safetensors")
    with pytest.raises(CocomixError, match="does not fit its configuration"):
        SparseAutoencoder.from_pretrained(tmp_path)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"threshold": 1}))
    with pytest.raises(CocomixError, match="unknown or missing settings"):
        SparseAutoencoder.from_pretrained(tmp_path)
    with pytest.raises(CocomixError, match="num_active_latents is 21"):
        SparseAutoencoderConfig(6, 20, 21)
