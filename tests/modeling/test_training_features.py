"""What training needs: checkpointed gradients, autocast, packed documents, attention kernels, compiled blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from cocomix import CocomixError
from cocomix.mixers.base import MixerInputs
from cocomix.mixers.concept import ConceptMixer
from cocomix.mixers.config import ConceptConfig
from cocomix.mixers.layout import Layout
from cocomix.modeling.model import CoCoMixForCausalLM
from tests.modeling.helpers import (
    FAMILIES,
    MIXERS,
    VOCAB_SIZE,
    concept_labels,
    every_family_with,
    student,
    tokens,
)

#: Its capped attention scores are beyond torch's fused kernel.
NO_SDPA = ("gemma2",)


def loss_and_gradients(model: CoCoMixForCausalLM, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return output.loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def training_inputs(mixer: str = "concept") -> dict[str, torch.Tensor]:
    ids = tokens()
    return {"input_ids": ids, "labels": ids} | ({"concept_labels": concept_labels()} if mixer == "concept" else {})


@pytest.mark.parametrize(("family", "mixer", "mixing"), every_family_with(MIXERS))
def test_checkpointed_gradients_equal_plain_ones(family: str, mixer: str, mixing: str) -> None:
    model, inputs = student(family, mixer, mixing).train(), training_inputs(mixer)
    plain_loss, plain = loss_and_gradients(model, **inputs)
    model.gradient_checkpointing_enable()
    assert all(block.gradient_checkpointing for block in model.adapter.blocks)
    loss, checkpointed = loss_and_gradients(model, **inputs)
    assert torch.equal(loss, plain_loss)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(checkpointed[name], plain[name]) for name in plain)


@pytest.mark.parametrize(("family", "mixing"), every_family_with(["interleave", "interleave_residual", "add", "none"]))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_documents_are_as_if_alone(family: str, mixing: str, attention: str) -> None:
    if attention == "sdpa" and family in NO_SDPA:
        pytest.skip("the family has no sdpa attention")
    model = student(family, mixing=mixing)
    model.set_attn_implementation(attention)
    first, second = tokens(2, 7), tokens(2, 6)
    positions = torch.cat([torch.arange(7), torch.arange(6)]).expand(2, -1)
    packed = model(input_ids=torch.cat([first, second], 1), position_ids=positions)
    for part, alone in ((slice(0, 7), model(input_ids=first)), (slice(7, 13), model(input_ids=second))):
        torch.testing.assert_close(packed.logits[:, part], alone.logits, atol=1e-4, rtol=1e-4)
        if alone.concept_values is not None:
            torch.testing.assert_close(packed.concept_values[:, part], alone.concept_values, atol=1e-4, rtol=1e-4)
    # Nothing of one document reaches the other, in the forward or the gradients.
    embeds = model.get_input_embeddings()(torch.cat([first, second], 1)).detach().requires_grad_(True)
    logits = model(inputs_embeds=embeds, position_ids=positions).logits
    (leaked,) = torch.autograd.grad(logits[:, 7:].sum(), embeds)
    assert not leaked[:, :7].any()
    assert leaked[:, 7:].any()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NO_SDPA])
@pytest.mark.parametrize("mixing", ["interleave", "add"])
def test_eager_and_sdpa_attention_agree(family: str, mixing: str) -> None:
    model, ids = student(family, mixing=mixing), tokens()
    outputs = []
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert model.backbone.config._attn_implementation == name
        outputs.append(model(input_ids=ids).logits)
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_flash_attention_is_refused_where_it_would_be_wrong(family: str) -> None:
    model, ids = student(family), tokens()
    model.backbone.config._attn_implementation_internal = "flash_attention_2"  # the kernels themselves need a GPU
    packed = torch.cat([torch.arange(4), torch.arange(5)]).expand(2, -1)
    with pytest.raises(CocomixError, match=r"(?i)flash.attention.*batch"):
        model(input_ids=ids, position_ids=packed)
    if "sliding_attention" in {model.adapter.layer_type(index) for index in (1, 2)}:
        with pytest.raises(CocomixError, match=r"(?i)flash.attention.*window"):
            model.adapter.run_blocks(torch.zeros(1, 4, 16), 1, 3, position_ids=tokens(1, 4), layout=Layout(1))


class TestAutocast:
    def test_loss_and_gradients_are_near_those_in_float32(self) -> None:
        model, inputs = student("llama").train(), training_inputs()
        exact_loss, exact = loss_and_gradients(model, **inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, rounded = loss_and_gradients(model, **inputs)
        assert loss.dtype == torch.float32
        # bfloat16 has 8 bits: products are off by up to 1 in 256 each.
        torch.testing.assert_close(loss, exact_loss, rtol=0.05, atol=0)
        for name in ("mixer.head_weight", "mixer.compress_weight"):
            assert rounded[name].dtype == torch.float32
            cosine = torch.cosine_similarity(rounded[name].flatten(), exact[name].flatten(), dim=0)
            assert cosine > 0.95, name

    def test_head_accumulates_in_float32(self) -> None:
        """The loss is that of the rounded operands in float32, and so is its gradient."""
        mixer = ConceptMixer(ConceptConfig(num_concepts=24, num_active_concepts=5), 16)
        mixer.reset_parameters(0.5)
        hidden, labels = torch.randn(2, 9, 16), concept_labels()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = mixer(hidden, MixerInputs(labels))
            output.concept_loss_sum.backward()
        assert output.concept_values.dtype == output.concept_loss_sum.dtype == torch.float32
        x = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.std(-1, keepdim=True) + 1e-5)
        weight = mixer.head_weight.detach().bfloat16().float().requires_grad_(True)
        z = (x.bfloat16().float() @ weight.t()).bfloat16().float()
        losses = z.logsumexp(-1) - z.gather(-1, labels.clamp(min=0)).mean(-1)
        expected = (losses * (labels >= 0).all(-1)).sum()
        expected.backward()
        torch.testing.assert_close(output.concept_loss_sum, expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(mixer.head_weight.grad, weight.grad, rtol=0.02, atol=0.02)

    def test_a_model_in_bfloat16(self) -> None:
        model, inputs = student("llama").bfloat16().train(), training_inputs()
        loss, gradients = loss_and_gradients(model, **inputs)
        assert torch.isfinite(loss)
        assert all(gradient.dtype == torch.bfloat16 for gradient in gradients.values())


@pytest.mark.parametrize("mixing", ["interleave", "interleave_residual", "add", "none"])
def test_gradients_through_the_mixer_pass_gradcheck(mixing: str) -> None:
    mixer = ConceptMixer(ConceptConfig(mixing=mixing, num_concepts=9, num_active_concepts=3), 6).double()
    mixer.reset_parameters(0.5)
    nn.init.normal_(mixer.pre_bias)
    hidden = torch.randn(2, 3, 6, dtype=torch.double, requires_grad=True)
    labels = torch.randint(0, 9, (2, 3, 2))
    names = [name for name, _ in mixer.named_parameters()]

    def run(hidden: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = torch.func.functional_call(
            mixer, dict(zip(names, parameters, strict=True)), (hidden, MixerInputs(labels))
        )
        return output.hidden, output.concept_loss_sum

    assert torch.autograd.gradcheck(run, (hidden, *mixer.parameters()))


def test_hidden_states_are_the_residual_stream() -> None:
    model, ids = student("llama", mixing="interleave"), tokens()
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(2, 9, 16), (2, 9, 16), (2, 18, 16), (2, 18, 16)]
    assert torch.equal(model.adapter.logits(states[-1][:, 1::2]), model(input_ids=ids).logits)
    with pytest.raises(CocomixError, match="output_attentions"):
        model(input_ids=ids, output_attentions=True)


def test_what_transformers_takes_for_granted() -> None:
    model, ids = student("llama"), tokens()
    plain = model(input_ids=ids)
    assert torch.equal(model(input_ids=ids, return_dict=False)[0], plain.logits)
    assert torch.equal(model(input_ids=ids, logits_to_keep=torch.tensor([0, 4])).logits, plain.logits[:, [0, 4]])
    assert torch.equal(model(input_ids=ids, logits_to_keep=3).logits, plain.logits[:, -3:])
    model.config.output_hidden_states = True
    assert len(model(input_ids=ids).hidden_states) == 4


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padded_parts_of_a_batch_add_up_to_it(padding_side: str) -> None:
    """Sums over the counts of the whole: four passes of unequal lengths are one of all rows."""
    model, ids, concepts = student().train(), tokens(8), concept_labels(8)
    lengths = torch.tensor([[9], [4], [7], [2], [9], [3], [5], [8]])
    columns = torch.arange(9)
    mask = (columns < lengths) if padding_side == "right" else (columns >= 9 - lengths)
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}
    inputs["concept_labels"] = concepts.masked_fill(~mask.unsqueeze(-1), -100)

    def gradients(rows_in_a_pass: int) -> dict[str, torch.Tensor]:
        model.zero_grad()
        passes = [
            model(**{k: v[i : i + rows_in_a_pass] for k, v in inputs.items()}) for i in range(0, 8, rows_in_a_pass)
        ]
        lm_count, concept_count = (sum(getattr(o, name) for o in passes) for name in ("lm_count", "concept_count"))
        assert int(lm_count) == int((inputs["labels"][:, 1:] != -100).sum())
        assert int(concept_count) == int((inputs["concept_labels"] != -100).any(-1).sum())
        for output in passes:
            (output.lm_loss_sum / lm_count + 0.1 * output.concept_loss_sum / concept_count).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    whole, parts = gradients(8), gradients(2)
    assert whole.keys() == parts.keys()
    for name in whole:
        # Only the order of float32 sums differs.
        torch.testing.assert_close(parts[name], whole[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_trainer_takes_the_same_step_however_the_batch_is_cut(accumulation: int, tmp_path: Any) -> None:
    """transformers.Trainer, with the loss that the model returns."""
    torch.manual_seed(0)
    rows = [{"input_ids": ids, "labels": ids, "concept_labels": concept_labels(1)[0]} for ids in tokens(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    model = student("llama").train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected_loss, gradients = loss_and_gradients(model, **{k: torch.stack([row[k] for row in rows]) for k in rows[0]})
    model.zero_grad()
    trained = Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert trained.training_loss == pytest.approx(float(expected_loss), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 1e-2 * gradients[name], atol=1e-5, rtol=1e-4)


def test_a_resized_vocabulary_trains_and_saves(tmp_path: Any) -> None:
    model = student("llama")
    model.resize_token_embeddings(VOCAB_SIZE + 3)
    ids = torch.full((1, 4), VOCAB_SIZE + 2)
    expected = model(input_ids=ids).logits
    assert expected.shape[-1] == VOCAB_SIZE + 3
    model.save_pretrained(tmp_path)
    assert torch.equal(CoCoMixForCausalLM.from_pretrained(tmp_path)(input_ids=ids).logits, expected)


@pytest.mark.unchecked_shapes
@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_compiled_blocks_equal_eager_ones_without_recompiling(family: str) -> None:
    inputs = training_inputs()
    eager_loss, eager = loss_and_gradients(student(family).train(), **inputs)
    model = student(family).train()
    model.compile_blocks()
    compiled_loss, compiled = loss_and_gradients(model, **inputs)
    torch.testing.assert_close(compiled_loss, eager_loss)
    for name in eager:
        torch.testing.assert_close(compiled[name], eager[name], atol=1e-4, rtol=1e-4)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(3):
            loss_and_gradients(model, **training_inputs())


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt2"])  # GPT-2 has none
def test_flex_attention_agrees(family: str) -> None:
    model, ids = student(family), tokens()
    expected = model(input_ids=ids).logits
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():  # on the CPU flex attention has no backward
        logits = model(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
