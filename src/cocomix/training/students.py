"""A student from its description."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from transformers import AutoConfig, PreTrainedConfig

from cocomix.modeling.configuration import CoCoMixConfig
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.training.config import StudentConfig, TrainConfig


@runtime_checkable
class TextShape(Protocol):
    """What a decoder's shape depends on: a token dataset, or one that is only planned."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int: ...

    @property
    def eos_token_id(self) -> int: ...


def backbone_config(student: StudentConfig, data: TextShape) -> PreTrainedConfig:
    """A decoder configuration of the student's shape, with tied embeddings and no dropout.

    What a family has of its own (windows, rotary bases, norms) stays as `transformers` sets it.
    """
    settings: dict[str, Any] = {
        "vocab_size": data.vocab_size,
        "hidden_size": student.hidden_size,
        "num_hidden_layers": student.num_layers,
        "num_attention_heads": student.num_heads,
        "max_position_embeddings": data.context_length,
        "tie_word_embeddings": True,
        "bos_token_id": data.eos_token_id,
        "eos_token_id": data.eos_token_id,
    }
    if student.family == "gpt2":
        settings |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    elif student.family == "gpt_neox":
        settings |= {"intermediate_size": 4 * student.hidden_size}
    else:
        settings |= {"intermediate_size": _gated_width(student.hidden_size), "num_key_value_heads": student.num_heads}
    if student.family in ("qwen3", "gemma2", "gemma3_text"):  # these set a head's width apart from the model's
        head_size = student.hidden_size // student.num_heads
        settings |= {"head_dim": head_size, "query_pre_attn_scalar": head_size}
    return AutoConfig.for_model(student.family, **settings)


def build_student(config: TrainConfig, data: TextShape, num_concepts: int | None) -> CoCoMixForCausalLM:
    """Initial weights from the seed: the backbone's are the same whatever is inserted."""
    student = config.student
    model_config = CoCoMixConfig(
        backbone_config=backbone_config(student, data),
        mixer=student.mixer,
        mixing=student.mixing,
        insert_layer=student.insert_layer,
        position_mode=student.position_mode,
        num_concepts=num_concepts or student.num_active_concepts,
        num_active_concepts=student.num_active_concepts,
        concept_loss_weight=config.concept_loss_weight,
        concept_stride=student.concept_stride,
        concept_window=student.concept_window,
        concept_groups=student.concept_groups,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return CoCoMixForCausalLM(model_config)


def _gated_width(hidden_size: int) -> int:
    """Width of a gated MLP with about the parameters of a plain one of 4 D: 8/3 D, rounded up to 32."""
    return -(-8 * hidden_size // 3 // 32) * 32
