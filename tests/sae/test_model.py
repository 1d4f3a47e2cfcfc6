"""The sparse autoencoder: its formula, in chunks, for every activation."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from cocomix import (
    CocomixError,
    SparseAutoencoder,
    SparseAutoencoderConfig,
)
from cocomix.sae import model as sae_module
from cocomix.sae.model import Latents


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
    with pytest.raises(CocomixError, match=r"num_active_latents is 21.*\(20\)"):
        SparseAutoencoderConfig(6, 20, 21)
    with pytest.raises(CocomixError, match="num_active_latents is None"):
        SparseAutoencoderConfig(6, 20)
    with pytest.raises(CocomixError, match=r"num_latents \(20\).*num_active_latents \(3\)"):
        SparseAutoencoderConfig(6, 20, 3, activation="groupmax")
    with pytest.raises(CocomixError, match="'layer_norm'"):
        make("topk", 4).fold_input_scale(2.0)
