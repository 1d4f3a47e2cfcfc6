"""Attribution equals finite differences in float64; labels follow their settings; the teacher stays frozen."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from cocomix import AttributionConfig, CocomixError, ConceptExtractor, SparseAutoencoder, SparseAutoencoderConfig
from cocomix.labels import attribution, gradients
from cocomix.labels.config import require_labels
from cocomix.labels.gradients import residual_gradient
from cocomix.mixers import head as concept_head
from cocomix.sae import model as sae_module
from tests.modeling.helpers import FAMILIES, backbone_config, every_family_with, tokens
from tests.reference.attribution import finite_difference_attribution
from tests.reference.labels import pre_activation_attribution, top_labels

POINTS_AND_LOSSES = (("original", "all_future"), ("original", "next_token"), ("reconstruction", "next_token"))


def make(
    family: str,
    normalize_input: str = "layer_norm",
    layer: int = 1,
    subtract_decoder_bias: bool = True,
    **settings: object,
) -> ConceptExtractor:
    teacher = AutoModelForCausalLM.from_config(backbone_config(family, initializer_range=0.3)).double().eval()
    sae = SparseAutoencoder(
        SparseAutoencoderConfig(16, 30, 5, normalize_input, subtract_decoder_bias=subtract_decoder_bias)
    ).double()
    sae.requires_grad_(False)
    sae.decoder_bias.normal_()
    config = AttributionConfig(**{"criterion": "attribution", "num_labels": 2} | settings)  # type: ignore[arg-type]
    return ConceptExtractor(teacher.requires_grad_(False), sae, layer, config)


@pytest.fixture
def _all_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """RMS norms and eager softmax compute in float32 whatever their input, which would drown a finite difference."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, **_: softmax(x, dim=dim))

    def rms_norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        gemma = type(self).__name__.startswith("Gemma")
        epsilon = self.eps if gemma else self.variance_epsilon
        return (gemma + self.weight) * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + epsilon)

    for family in FAMILIES:
        module = importlib.import_module(AutoModelForCausalLM._model_mapping[type(backbone_config(family))].__module__)
        for name in dir(module):
            if name.endswith("RMSNorm"):
                monkeypatch.setattr(getattr(module, name), "forward", rms_norm)


@pytest.mark.usefixtures("_all_in_float64")
@pytest.mark.parametrize(
    ("family", "normalize_input", "point", "loss"),
    every_family_with(
        [(norm, *pair) for norm in ("layer_norm", "none") for pair in POINTS_AND_LOSSES], adapters_with_all=False
    ),
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


@pytest.mark.parametrize(("family", "point", "loss"), every_family_with(POINTS_AND_LOSSES))
def test_chunks_do_not_change_the_gradient(family: str, point: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor, ids = make(family, point=point, loss=loss), tokens(2, 7)
    whole = extractor.scored(ids)
    monkeypatch.setattr(gradients, "COPIES_PER_PASS", 3)
    monkeypatch.setattr(gradients, "CHUNK_ELEMENTS", 5 * 40)
    parts = extractor.scored(ids)
    assert torch.equal(parts.labels, whole.labels)
    torch.testing.assert_close(parts.scores, whole.scores)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(("point", "loss"), POINTS_AND_LOSSES)
def test_no_parameter_gradient_is_allocated_and_no_graph_exists_below_the_hook(
    point: str, loss: str, layer: int
) -> None:
    extractor = make("gpt2", point=point, loss=loss, layer=layer)
    has_graph: dict[int, set[bool]] = {0: set(), 1: set(), 2: set()}
    for index, block in enumerate(extractor.teacher.adapter.blocks):
        block.register_forward_hook(lambda _, __, out, index=index: has_graph[index].add(out.requires_grad))
    extractor(tokens())
    parameters = [*extractor.teacher.model.parameters(), *extractor.sae.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in parameters)
    assert all(has_graph[index] == {False} for index in range(layer + 1))
    assert all(True in has_graph[index] for index in range(layer + 1, 3))


@pytest.mark.parametrize("sign", ["raises_loss", "lowers_loss", "magnitude"])
@pytest.mark.parametrize("value", ["activation", "pre_activation"])
@pytest.mark.parametrize("subtract", [True, False])
def test_labels_are_the_top_of_their_score(
    sign: str, value: str, subtract: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = make("llama", subtract_decoder_bias=subtract, sign=sign, value=value, num_labels=3)
    ids = tokens(2, 7)
    monkeypatch.setattr(attribution, "CHUNK_ELEMENTS", 4 * 30)  # 4 positions a chunk
    h = extractor.teacher.residual(ids)
    latents = extractor.sae.encode(h)
    if value == "activation":
        a = extractor.attribution(ids, h, latents)
        dense = torch.zeros(*ids.shape, 30, dtype=a.dtype).scatter(-1, latents.indices, a)
    else:
        dense = pre_activation_attribution(
            extractor.sae, h, residual_gradient(extractor.teacher, ids, h, loss="all_future")
        )
    found = extractor.scored(ids)
    expected = top_labels(dense, sign, 3)
    assert torch.equal(found.labels, expected)
    signed = {"raises_loss": dense, "lowers_loss": -dense, "magnitude": dense.abs()}[sign]
    valid = expected >= 0
    torch.testing.assert_close(found.scores[valid], signed.gather(-1, expected.clamp(min=0))[valid])
    assert (found.scores[~valid] == 0).all()


def test_activation_value_takes_the_strongest_latents() -> None:
    extractor, ids = make("llama", criterion="activation_value"), tokens()
    latents = extractor.sae.encode(extractor.teacher.residual(ids))
    labels = extractor(ids)
    valid = labels[..., 0] >= 0
    assert torch.equal(labels[valid], latents.indices[..., :2][valid])


def test_the_last_position_and_positions_without_active_latents_have_no_label() -> None:
    extractor, ids = make("llama", sign="magnitude"), tokens()
    extractor.sae.encoder_bias.fill_(-100.0)  # ReLU leaves nothing active
    assert (extractor(ids) == -100).all()
    extractor.sae.encoder_bias.fill_(100.0)
    labels = extractor(ids)
    assert (labels[:, -1] == -100).all()
    assert (labels[:, :-1] >= 0).all()


@pytest.mark.parametrize("settings", [{}, {"sign": "lowers_loss"}, {"value": "pre_activation"}, {"loss": "next_token"}])
def test_no_label_has_a_score_of_the_opposite_sign(settings: dict[str, Any]) -> None:
    """With as many labels as latents can be active, half of them would say the opposite."""
    extractor, ids = make("gpt2", num_labels=5, **settings), tokens(4, 9)
    scored = extractor.scored(ids)
    is_label = scored.labels >= 0
    assert torch.equal(is_label, scored.scores > 0)
    assert (scored.scores >= 0).all()
    assert (is_label[:, :-1] >= is_label[:, :-1].roll(-1, dims=-1))[..., :-1].all()  # missing ones stand last
    if extractor.config.value == "activation":
        latents = extractor.sae.encode(extractor.teacher.residual(ids))
        num_active = (latents.values > 0).sum(-1)[:, :-1]
        num_labels = is_label.sum(-1)[:, :-1]
        assert (num_labels <= num_active).all()
        assert (num_labels < num_active).double().mean() > 0.5
        assert (num_labels > 0).any()


def test_activation_value_gives_the_labels_that_are_left() -> None:
    extractor, ids = make("llama", criterion="activation_value", num_labels=5), tokens()
    extractor.sae.encoder_bias.fill_(-1.5)
    latents = extractor.sae.encode(extractor.teacher.residual(ids))
    is_active = latents.values > 0
    assert 0 < is_active.double().mean() < 1
    expected = latents.indices.masked_fill(~is_active, -100)
    expected[:, -1] = -100
    assert torch.equal(extractor(ids), expected)


def test_labels_of_a_window_do_not_depend_on_its_batch() -> None:
    extractor, ids = make("gpt2"), tokens(3, 8)
    assert torch.equal(extractor(ids)[1:2], extractor(ids[1:2]))


def test_contradictions_are_refused() -> None:
    with pytest.raises(CocomixError, match=r"num_labels.*0"):
        AttributionConfig(num_labels=0)
    extractor = make("llama")
    with pytest.raises(CocomixError, match=r"num_labels is 6.* 5 active"):
        ConceptExtractor(extractor.teacher.model, extractor.sae, 1, AttributionConfig(num_labels=6))
    settings = AttributionConfig("attribution", value="pre_activation", num_labels=31)
    with pytest.raises(CocomixError, match=r"num_labels is 31.* 30 "):
        ConceptExtractor(extractor.teacher.model, extractor.sae, 1, settings)
    with pytest.raises(CocomixError, match=r"'shuffled'.*--labels"):
        ConceptExtractor(extractor.teacher.model, extractor.sae, 1, AttributionConfig(control="shuffled"))
    with pytest.raises(CocomixError, match="0 to 2"):
        ConceptExtractor(extractor.teacher.model, extractor.sae, 3)
    other = SparseAutoencoder(SparseAutoencoderConfig(8, 30, 5))
    with pytest.raises(CocomixError, match=r"width 8.*width 16"):
        ConceptExtractor(extractor.teacher.model, other, 1)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
@pytest.mark.parametrize(
    ("loss", "point", "value"),
    [
        ("all_future", "original", "activation"),
        ("next_token", "original", "activation"),
        ("next_token", "reconstruction", "pre_activation"),
    ],
)
def test_isolated_documents_have_the_labels_they_have_alone(family: str, loss: str, point: str, value: str) -> None:
    extractor = make(family, loss=loss, point=point, value=value)
    first, second = tokens(2, 7), tokens(2, 6)
    positions = torch.cat([torch.arange(7), torch.arange(6)]).expand(2, -1)
    packed = extractor.scored(torch.cat([first, second], 1), positions)
    parts = [(slice(7, 12), extractor.scored(second))]
    if loss == "next_token":  # packed, the first document's last token has a next one, which all later losses include
        parts.append((slice(0, 6), extractor.scored(first)))
    for part, alone in parts:
        assert torch.equal(packed.labels[:, part], alone.labels[:, :-1])
        torch.testing.assert_close(packed.scores[:, part], alone.scores[:, :-1])
    crossing = extractor.scored(torch.cat([first, second], 1))
    assert not torch.equal(crossing.labels, packed.labels)


@pytest.mark.usefixtures("_all_in_float64")
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
    num_positive = (got > 0).sum(-1)
    assert num_positive.min() < 25  # more labels are asked for than there are positive scores
    assert torch.equal((extractor(ids) >= 0).sum(-1)[:, :-1], num_positive[:, :-1].clamp(max=25))


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": "activation_value"},
        {"value": "pre_activation"},
        {"loss": "next_token"},
        {"point": "reconstruction", "loss": "next_token"},
    ],
)
def test_nothing_of_the_size_of_all_concepts_or_all_tokens_is_made(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    B, T, C, D, V = 2, 32, 4096, 16, 3000
    for module in (attribution, gradients, concept_head, sae_module):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 2 * C, raising=False)
    monkeypatch.setattr(gradients, "COPIES_PER_PASS", 8)
    teacher = AutoModelForCausalLM.from_config(backbone_config("llama", vocab_size=V)).eval().requires_grad_(False)
    sae = SparseAutoencoder(SparseAutoencoderConfig(D, C, 8)).requires_grad_(False)
    config = AttributionConfig(**{"criterion": "attribution"} | settings)  # type: ignore[arg-type]
    extractor = ConceptExtractor(teacher, sae, 1, config)
    with _LargestTensor() as largest:
        extractor(tokens(B, T))
    # The largest are views of the weights themselves; [B, T, C] and [B, T, V] are four times that.
    assert largest.num_elements == C * D


class _LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.num_elements = max(self.num_elements, *sizes, 0)
        return result


def test_one_wild_position_does_not_fill_the_memory_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where thresholds decide, a position can have all C latents; its chunk alone holds them."""
    C, T = 512, 64
    monkeypatch.setattr(attribution, "CHUNK_ELEMENTS", 4 * C)
    monkeypatch.setattr(sae_module, "CHUNK_ELEMENTS", 4 * C)
    sae = SparseAutoencoder(SparseAutoencoderConfig(16, C, activation="jumprelu")).double().requires_grad_(False)
    teacher = make("llama").teacher.model
    extractor = ConceptExtractor(teacher, sae, 1, AttributionConfig("activation_value", num_labels=1))
    residual = extractor.teacher.residual

    def wild(*inputs: torch.Tensor) -> torch.Tensor:
        h = residual(*inputs)
        sae.threshold.fill_(1.0)
        sae.encoder_bias.fill_(0.0)
        return torch.cat([1e6 * h[:, :1], h[:, 1:]], dim=1)

    monkeypatch.setattr(extractor.teacher, "residual", wild)
    with _LargestTensor() as largest:
        extractor(tokens(1, T))
    assert largest.num_elements <= max(16 * C, 4 * C)


@pytest.mark.parametrize("name", ["criterion", "point", "loss", "value", "sign", "control"])
def test_misspelt_settings_are_refused(name: str) -> None:
    config = AttributionConfig()
    object.__setattr__(config, name, "foo")
    with pytest.raises(CocomixError, match=f"{name} is 'foo'"):
        config.__post_init__()


def test_one_backward_a_position_is_refused_where_it_would_be_run() -> None:
    with pytest.raises(CocomixError, match=r"'reconstruction'.*'all_future'.*'next_token'"):
        AttributionConfig("attribution", "reconstruction", "all_future")
    AttributionConfig("activation_value", "reconstruction", "all_future")  # neither is used


def test_stored_labels_of_another_choice_are_refused_by_name_whatever_was_allowed_then() -> None:
    stored = {"criterion": "attribution", "point": "reconstruction", "loss": "all_future"}
    with pytest.raises(CocomixError, match=r"labels .*loss 'all_future'.*'next_token'"):
        require_labels(Path("labels"), stored, AttributionConfig("attribution", "reconstruction", "next_token"))
