"""The composed student: equal to its backbone without a mixer, to the plain transcription with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cocomix import CocomixError
from cocomix.modeling import configuration
from cocomix.modeling.configuration import CoCoMixConfig
from cocomix.modeling.loading import load_causal_lm, local_model
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.tools.bench import reference
from tests.modeling.helpers import (
    FAMILIES,
    MIXERS,
    VOCAB_SIZE,
    backbone_config,
    concept_labels,
    every_family_with,
    student,
    tokens,
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padded", [False, True])
def test_without_mixer_logits_equal_the_backbones_bit_for_bit(family: str, padded: bool) -> None:
    model = student(family, "none", "none")
    ids = tokens()
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = model.backbone(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_backbone_starts_equal_whatever_is_inserted(family: str) -> None:
    plain = student(family, "none", "none").backbone.state_dict()
    for mixer, mixing in MIXERS:
        other = student(family, mixer, mixing).backbone.state_dict()
        assert all(torch.equal(plain[name], other[name]) for name in plain), (mixer, mixing)


@pytest.mark.parametrize("mixing", ["interleave", "interleave_residual"])
@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_gpt2_equals_the_plain_transcription_with_all_gradients(mixing: str, layer: int) -> None:
    model = student("gpt2", mixing=mixing, layer=layer, concept_loss_weight=0.3).double()
    ids, labels = tokens(), concept_labels()
    labels[0, 2], labels[1, 4, 1:] = -100, -100
    output = model(input_ids=ids, labels=ids, concept_labels=labels, return_logits=True)
    parameters = dict(model.named_parameters())
    fast = torch.autograd.grad(output.loss, list(parameters.values()))

    expected = reference.gpt2(
        parameters,
        ids,
        labels,
        num_blocks=3,
        num_heads=2,
        layer=layer,
        K=5,
        concept_weight=0.3,
        is_residual=mixing == "interleave_residual",
    )
    slow = torch.autograd.grad(expected.loss, list(parameters.values()))
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.logits, expected.logits)
    for name, got, expected in zip(parameters, fast, slow, strict=True):
        torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"gradient of {name}: {text}")


@pytest.mark.parametrize(("family", "mixer", "mixing"), every_family_with(MIXERS))
class TestEveryFamilyAndMixer:
    """What holds whatever is inserted into whichever decoder."""

    def test_saved_and_loaded_equals_original(self, family: str, mixer: str, mixing: str, tmp_path: Path) -> None:
        model = student(family, mixer, mixing)
        model.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert isinstance(loaded, CoCoMixForCausalLM)
        assert loaded.config.mixer == model.config.mixer
        assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
        ids = tokens()
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)

    def test_left_padded_equals_unpadded(self, family: str, mixer: str, mixing: str) -> None:
        model, ids = student(family, mixer, mixing), tokens()
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
        mask = torch.ones_like(padded)
        mask[:, :3] = 0
        # Another mask, another attention kernel: equal to rounding in float32.
        torch.testing.assert_close(
            model(input_ids=padded, attention_mask=mask).logits[:, 3:],
            model(input_ids=ids).logits,
            atol=1e-4,
            rtol=1e-4,
        )

    def test_cached_equals_uncached_token_by_token(self, family: str, mixer: str, mixing: str) -> None:
        model, ids = student(family, mixer, mixing), tokens()
        expected = model(input_ids=ids).logits
        output = model(input_ids=ids[:, :4], use_cache=True)
        parts = [output.logits]
        for t in range(4, ids.shape[1]):
            output = model(input_ids=ids[:, t : t + 1], past_key_values=output.past_key_values)
            parts.append(output.logits)
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)

    def test_greedy_generation_does_not_depend_on_the_cache(self, family: str, mixer: str, mixing: str) -> None:
        model, ids = student(family, mixer, mixing), tokens()
        settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
        assert torch.equal(model.generate(ids, **settings), model.generate(ids, use_cache=False, **settings))

    def test_no_position_sees_a_later_token(self, family: str, mixer: str, mixing: str) -> None:
        model, ids = student(family, mixer, mixing), tokens()
        changed = ids.clone()
        changed[:, 5] = (changed[:, 5] + 1) % VOCAB_SIZE
        before, after = model(input_ids=ids).logits, model(input_ids=changed).logits
        assert torch.equal(before[:, :5], after[:, :5])
        assert not torch.equal(before[:, 5:], after[:, 5:])


def test_insertion_at_the_bottom_is_cached_too() -> None:
    model, ids = student("llama", layer=-1), tokens()
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **settings), model.generate(ids, use_cache=False, **settings))


def test_sequential_positions_differ_from_shared_ones_only_for_rotary_models() -> None:
    ids = tokens()
    for family, equal in (("gpt2", True), ("llama", False)):
        logits = [student(family, position_mode=mode)(input_ids=ids).logits for mode in ("shared", "sequential")]
        assert torch.equal(*logits) is equal


def test_losses_are_means_of_their_sums_over_valid_targets() -> None:
    model, ids, labels = student(), tokens(), concept_labels()
    targets = ids.clone()
    targets[0, :4] = -100
    output = model(input_ids=ids, labels=targets, concept_labels=labels)
    assert int(output.lm_count) == 2 * 8 - 3
    assert int(output.concept_count) == 2 * 8
    torch.testing.assert_close(output.lm_loss, output.lm_loss_sum / output.lm_count)
    torch.testing.assert_close(output.loss, output.lm_loss + 0.1 * output.concept_loss)


def test_logits_are_left_out_in_training_unless_asked_for() -> None:
    model, ids = student().train(), tokens()
    assert model(input_ids=ids, labels=ids).logits is None
    assert model(input_ids=ids, labels=ids, return_logits=True).logits is not None
    assert model(input_ids=ids).logits is not None


def test_the_auto_class_makes_it() -> None:
    assert type(AutoModelForCausalLM.from_config(student("qwen2").config)) is CoCoMixForCausalLM


@pytest.mark.parametrize(("mixer", "layer"), [("none", None), ("pause", 1), ("concept", 1)])
def test_settings_of_version_0_1_are_read(mixer: str, layer: int | None) -> None:
    """They name every mixer's settings, and number the mixer's place by the block before which it stands."""
    stored = CoCoMixConfig(backbone_config=backbone_config("llama"), mixer="none").to_dict()
    del stored["format_version"]
    stored |= {"mixer": mixer, "mixing": "add", "insert_layer": 2, "position_mode": "shared", "num_concepts": 24}
    stored |= {"num_active_concepts": 5, "concept_stride": 1, "concept_window": None, "concept_groups": None}
    config = CoCoMixConfig.from_dict(stored)
    assert getattr(config, "layer", None) == layer
    assert getattr(config, "rescale_epsilon", 1e-5) == 1e-5
    assert CoCoMixConfig.from_dict(config.to_dict()).mixer == config.mixer


class TestErrors:
    """Bad input: one sentence each."""

    def test_unsupported_family(self) -> None:
        config = backbone_config("llama").to_dict() | {"model_type": "opt"}
        with pytest.raises(CocomixError, match="'opt'"):
            CoCoMixForCausalLM(CoCoMixConfig(backbone_config=config, num_concepts=4, num_active_concepts=2))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"layer": 2}, r"layer.*2.*-1.*1"),
            ({"insert_layer": 3}, r"layer.*2.*-1.*1"),
            ({"mixer": "conept"}, r"'conept'.*concept\b"),
            ({"mixing": "sum"}, r"mixing.*'sum'"),
            ({"position_mode": "both"}, r"position_mode.*'both'"),
            ({"num_active_concepts": 99, "num_concepts": 8}, r"num_active_concepts.*99"),
            ({"mixer": "pause", "mixing": "none"}, r"mixing.*'none'"),
            ({"concept_loss_weight": float("nan")}, r"concept_loss_weight.*nan"),
            ({"initializer_range": -1}, r"initializer_range.*-1"),
            ({"tie_word_embeddings": False}, r"tie_word_embeddings.*backbone"),
            ({"insert_layr": 1}, "'insert_layr'"),
            ({"vocab_size": 9}, "'vocab_size'"),
        ],
    )
    def test_configuration(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(CocomixError, match=message):
            CoCoMixConfig(backbone_config=backbone_config("llama"), **settings)

    @pytest.mark.parametrize("backbone", ["gpt2", {}, {"model_type": "nonsense"}])
    def test_backbone_configuration(self, backbone: Any) -> None:
        with pytest.raises(CocomixError, match="backbone_config"):
            configuration._backbone(backbone)

    @pytest.mark.parametrize("wrong", ["1", 1.5, True])
    def test_counts_are_whole_numbers(self, wrong: Any) -> None:
        config = student().config
        with pytest.raises(CocomixError, match=r"layer.*whole number"):
            config.layer = wrong
        with pytest.raises(CocomixError, match=r"layer.*whole number"):
            CoCoMixConfig(backbone_config=config.backbone_config, insert_layer=wrong)

    def test_settings_changed_afterwards(self, tmp_path: Path) -> None:
        student().save_pretrained(tmp_path)
        with pytest.raises(CocomixError, match=r"layer.*98"):
            CoCoMixForCausalLM.from_pretrained(tmp_path, layer=98)
        with pytest.raises(CocomixError, match=r"mixing.*'interleeve'"):
            CoCoMixForCausalLM.from_pretrained(tmp_path, mixing="interleeve")

    def test_token_out_of_range(self) -> None:
        with pytest.raises(CocomixError, match=r"input_ids.*40.*39"):
            student()(input_ids=torch.tensor([[1, 40]]))

    def test_labels_of_the_wrong_shape(self) -> None:
        ids = tokens()
        with pytest.raises(CocomixError, match=r"\blabels.*shape"):
            student()(input_ids=ids, labels=ids[:, 1:])
        with pytest.raises(CocomixError, match=r"concept_labels.*shape"):
            student()(input_ids=ids, concept_labels=concept_labels(T=8))

    def test_concept_out_of_range(self) -> None:
        with pytest.raises(CocomixError, match=r"concept_labels.*24.*23"):
            student()(input_ids=tokens(1, 2), concept_labels=torch.full((1, 2, 3), 24))

    def test_concept_labels_for_a_model_without_concepts(self) -> None:
        with pytest.raises(CocomixError, match=r"mixer.*'pause'"):
            student(mixer="pause")(input_ids=tokens(), concept_labels=concept_labels())

    def test_labels_out_of_range(self) -> None:
        ids = tokens(1, 2)
        with pytest.raises(CocomixError, match=r"\blabels.*40.*39"):
            student()(input_ids=ids, labels=torch.tensor([[1, 40]]))
        with pytest.raises(CocomixError, match=r"concept_labels.*-1"):
            student()(input_ids=ids, concept_labels=torch.full((1, 2, 3), -1))
        with pytest.raises(CocomixError, match=r"attention.mask.*\[batch, keys\]"):
            student()(input_ids=ids, attention_mask=torch.zeros(1, 1, 2, 2))

    @pytest.mark.parametrize("load", [CoCoMixForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained])
    def test_checkpoint_that_does_not_fit(self, tmp_path: Path, load: Any) -> None:
        student().save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        tensors = load_file(file)
        for changed, message in (
            ({k: v for k, v in tensors.items() if k != "mixer.head_bias"}, r"missing.*mixer\.head_bias"),
            (tensors | {"mixer.tail": torch.zeros(1)}, r"unexpected.*mixer\.tail"),
            (tensors | {"mixer.head_bias": torch.zeros(1)}, r"mismatched.*mixer\.head_bias"),
        ):
            save_file(changed, file, metadata={"format": "pt"})
            for loader in (load, load_causal_lm):
                with pytest.raises(CocomixError, match=message):
                    loader(tmp_path)
        file.write_bytes(b"not a tensor in sight")
        for loader in (load, load_causal_lm):
            with pytest.raises(CocomixError, match=r"test_checkpoint.*Error while deserializing"):
                loader(tmp_path)
        file.rename(tmp_path / "pytorch_model.bin")
        with pytest.raises((CocomixError, OSError), match="safetensors"):
            load(tmp_path)
        with pytest.raises(CocomixError, match="safetensors"):
            load(tmp_path, use_safetensors=False)

    def test_folder_of_a_plain_decoder(self, tmp_path: Path) -> None:
        student().backbone.save_pretrained(tmp_path)
        with pytest.raises(CocomixError, match="from_backbone"):
            CoCoMixForCausalLM.from_pretrained(tmp_path)

    def test_shapes_and_types_of_inputs(self) -> None:
        model, ids = student(), tokens()
        for inputs, message in (
            ({"input_ids": ids, "inputs_embeds": torch.zeros(2, 9, 16)}, r"input_ids.*inputs_embeds"),
            ({"inputs_embeds": torch.zeros(2, 9, 12)}, r"inputs_embeds.*\[batch, tokens, 16\]"),
            ({"input_ids": ids, "attention_mask": torch.ones(2, 8)}, r"attention_mask.*\(2, 8\)"),
            ({"input_ids": ids, "concept_labels": concept_labels(A=1)[..., :0]}, r"concept_labels.*shape"),
            ({"input_ids": ids, "concept_labels": concept_labels().float()}, r"concept_labels.*torch\.float32"),
            ({"input_ids": ids, "conept_labels": concept_labels()}, "'conept_labels'"),
        ):
            with pytest.raises(CocomixError, match=message):
                model(**inputs)
        with pytest.raises(CocomixError, match=r"position_ids.*64.*63"):
            student("gpt2")(input_ids=torch.ones(1, 65, dtype=torch.long))
        with pytest.raises(CocomixError, match="assistant_early_exit"):
            model.generate(ids, assistant_early_exit=1)

    def test_hub_name_without_a_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
        assert local_model(Path("openai-community/gpt2")) == tmp_path
        assert local_model(tmp_path) == tmp_path
        assert local_model(tmp_path / "nothing") == tmp_path / "nothing"
        assert asked == ["openai-community/gpt2"]

        def refuse(*_: object, **__: object) -> str:
            raise OSError("no route to host")

        monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
        with pytest.raises(CocomixError, match=r"gpt2.*no route to host"):
            local_model(Path("gpt2"))

    def test_gguf_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(CocomixError, match=r"model\.gguf"):
            load_causal_lm(tmp_path / "model.gguf")

    def test_labels_beside_embeddings(self) -> None:
        with pytest.raises(CocomixError, match=r"\blabels.*shape"):
            student()(inputs_embeds=torch.zeros(1, 4, 16), labels=tokens(1, 3))

    def test_nothing_to_read(self) -> None:
        with pytest.raises(CocomixError, match=r"input_ids.*inputs_embeds"):
            student()()
