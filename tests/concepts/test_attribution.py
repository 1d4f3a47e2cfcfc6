"""Attribution equals finite differences in float64; labels follow their settings; the teacher stays frozen."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from cocomix import AttributionConfig, CocomixError, ConceptExtractor, SparseAutoencoder, SparseAutoencoderConfig
from tests.modeling.helpers import FAMILIES, backbone_config, tokens
from tests.reference.attribution import finite_difference_attribution


def make(family: str, normalize_input: str = "layer_norm", **settings: object) -> ConceptExtractor:
    teacher = AutoModelForCausalLM.from_config(backbone_config(family, initializer_range=0.3)).double().eval()
    sae = SparseAutoencoder(SparseAutoencoderConfig(16, 30, 5, normalize_input=normalize_input)).double()
    sae.requires_grad_(False)
    sae.decoder_bias.normal_()
    config = AttributionConfig(**{"criterion": "attribution", "num_labels": 2} | settings)  # type: ignore[arg-type]
    return ConceptExtractor(teacher.requires_grad_(False), sae, 1, config)


@pytest.fixture
def _norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's norm computes in float32 whatever its input, which would drown a finite difference."""

    def forward(self: LlamaRMSNorm, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.mark.usefixtures("_norms_in_float64")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalize_input", ["layer_norm", "none"])
@pytest.mark.parametrize(
    ("point", "loss"), [("original", "all_future"), ("original", "next_token"), ("reconstruction", "next_token")]
)
def test_attribution_equals_finite_differences(family: str, normalize_input: str, point: str, loss: str) -> None:
    extractor = make(family, normalize_input, point=point, loss=loss)
    ids = tokens(2, 6)
    h = extractor.teacher.residual(ids)
    got = extractor.attribution(ids, h, extractor.sae.encode(h))
    expected = finite_difference_attribution(extractor.teacher, extractor.sae, ids, point=point, loss=loss)
    assert got.abs().max() > 1e-3
    # Central differences with a step of 1e-5 in float64 are exact to about 1e-9 here.
    torch.testing.assert_close(got, expected, atol=1e-7, rtol=1e-6)


def test_no_parameter_gradient_is_allocated() -> None:
    extractor = make("gpt2", loss="next_token")
    extractor(tokens())
    parameters = [*extractor.teacher.model.parameters(), *extractor.sae.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in parameters)


@pytest.mark.parametrize("sign", ["raises_loss", "lowers_loss", "magnitude"])
def test_labels_are_the_top_of_their_score(sign: str) -> None:
    extractor, ids = make("llama", sign=sign), tokens()
    labels = extractor(ids)
    h = extractor.teacher.residual(ids)
    latents = extractor.sae.encode(h)
    a = extractor.attribution(ids, h, latents)
    score = {"raises_loss": a, "lowers_loss": -a, "magnitude": a.abs()}[sign]
    dense = torch.full((*ids.shape, 30), -torch.inf, dtype=a.dtype).scatter(-1, latents.indices, score)
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1] - 1):
            if (latents.values[b, t] > 0).sum() >= 2:
                assert labels[b, t].tolist() == dense[b, t].topk(2).indices.tolist()


def test_activation_value_takes_the_strongest_latents() -> None:
    extractor, ids = make("llama", criterion="activation_value"), tokens()
    latents = extractor.sae.encode(extractor.teacher.residual(ids))
    labels = extractor(ids)
    valid = labels[..., 0] >= 0
    assert torch.equal(labels[valid], latents.indices[..., :2][valid])


def test_last_position_and_positions_with_too_few_latents_have_no_label() -> None:
    extractor, ids = make("llama"), tokens()
    extractor.sae.encoder_bias.fill_(-100.0)  # ReLU leaves nothing active
    assert (extractor(ids) == -100).all()
    extractor.sae.encoder_bias.fill_(100.0)
    labels = extractor(ids)
    assert (labels[:, -1] == -100).all()
    assert (labels[:, :-1] >= 0).all()


def test_labels_of_a_window_do_not_depend_on_its_batch() -> None:
    extractor, ids = make("gpt2"), tokens(3, 8)
    assert torch.equal(extractor(ids)[1:2], extractor(ids[1:2]))


def test_contradictions_are_refused() -> None:
    with pytest.raises(CocomixError, match="needs loss 'next_token'"):
        AttributionConfig(point="reconstruction", loss="all_future")
    with pytest.raises(CocomixError, match="num_labels is 0"):
        AttributionConfig(num_labels=0)
    extractor = make("llama")
    with pytest.raises(CocomixError, match="more than the 5 active latents"):
        ConceptExtractor(extractor.teacher.model, extractor.sae, 1, AttributionConfig(num_labels=6))
    with pytest.raises(CocomixError, match="takes 0 to 2"):
        ConceptExtractor(extractor.teacher.model, extractor.sae, 3)
    other = SparseAutoencoder(SparseAutoencoderConfig(8, 30, 5))
    with pytest.raises(CocomixError, match="reads width 8, the teacher has width 16"):
        ConceptExtractor(extractor.teacher.model, other, 1)


@pytest.mark.usefixtures("_norms_in_float64")
@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_dictionaries_without_a_fixed_number_of_latents(activation: str) -> None:
    teacher, ids = make("llama").teacher.model, tokens(2, 6)
    settings = {"normalize_input": "constant_norm_rescale", "activation": activation, "skip_connection": True}
    sae = SparseAutoencoder(SparseAutoencoderConfig(16, 30, **settings)).double().requires_grad_(False)  # type: ignore[arg-type]
    for tensor in sae.state_dict().values():
        tensor.normal_(std=0.3)
    config = AttributionConfig("attribution", "reconstruction", "next_token", num_labels=25)
    extractor = ConceptExtractor(teacher, sae, 1, config)
    h = extractor.teacher.residual(ids)
    got = extractor.attribution(ids, h, sae.encode(h))
    expected = finite_difference_attribution(extractor.teacher, sae, ids, point="reconstruction", loss="next_token")
    assert got.abs().max() > 1e-3
    torch.testing.assert_close(got, expected, atol=1e-7, rtol=1e-6)  # as above
    num_active = (sae.encode(h).values > 0).sum(-1)
    assert num_active.min() < 25  # such tokens have no labels, and more slots are asked for than latents are active
    assert torch.equal(extractor(ids)[:, :-1, 0] >= 0, num_active[:, :-1] >= 25)
