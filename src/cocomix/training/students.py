"""Builds what a run trains from its settings: the decoder, its mixer and the objectives."""

from __future__ import annotations

import functools
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from cocomix.base.errors import CocomixError, nearest
from cocomix.base.formats import format_bytes, format_count
from cocomix.labels.live import TeacherLabels
from cocomix.mixers.config import MixerConfig
from cocomix.modeling.backbones import supported_families
from cocomix.modeling.configuration import CoCoMixConfig
from cocomix.modeling.loading import check_data
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.modeling.teacher import load_teacher
from cocomix.objectives.base import CONCEPT_LABELS, Objective, Surroundings
from cocomix.training.batches import Batches
from cocomix.training.config import StudentConfig, TrainConfig

#: Weights, gradients and two moments, in float32.
TRAINING_BYTES_PER_PARAMETER = 16


@runtime_checkable
class TextShape(Protocol):
    """The shape of a token dataset, real or planned, on which a decoder's shape depends."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int: ...

    @property
    def eos_token_id(self) -> int: ...


def backbone_config(student: StudentConfig, data: TextShape) -> PreTrainedConfig:
    """A decoder configuration of the student's shape, with tied embeddings and no dropout.

    Family-specific settings (windows, rotary bases, norms) are those of `transformers` or the adapter.

    Raises:
        CocomixError: the family has no adapter, or the width does not suit rotary positions.
    """
    families = supported_families()
    if student.family not in families:
        raise CocomixError(
            f"student.family is {student.family!r}, which has no adapter{nearest(student.family, families)}"
        )
    adapter = families[student.family]
    if adapter.positions == "rotary" and student.hidden_size % (2 * student.num_heads):
        raise CocomixError(
            f"hidden_size {student.hidden_size} is not divisible by twice num_heads {student.num_heads} (rotary positions)"
        )
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
    settings |= adapter.scratch_settings(student.family, student.hidden_size, student.num_heads)
    return AutoConfig.for_model(student.family, **settings)


def trained_mixer(config: TrainConfig, batches: Batches) -> MixerConfig:
    """The mixer's settings, with the labels' number of concepts."""
    labels = batches.more.get(CONCEPT_LABELS)
    return config.student.mixer if labels is None else with_num_concepts(config, labels.source.num_concepts)


def with_num_concepts(config: TrainConfig, num_concepts: int | None) -> MixerConfig:
    """The mixer's settings with `num_concepts` set, if the mixer has concepts."""
    mixer = config.student.mixer
    if num_concepts is None or not mixer.has_concepts:
        return mixer
    counted: MixerConfig = mixer.changed(num_concepts=num_concepts)
    return counted


def build_student(config: TrainConfig, data: TextShape, mixer: MixerConfig) -> CoCoMixForCausalLM:
    """A student with initial weights drawn from the seed; the backbone's are the same for every mixer."""
    model_config = CoCoMixConfig(
        backbone_config=backbone_config(config.student, data),
        mixer=mixer,
        concept_loss_weight=config.concept_loss.weight,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return CoCoMixForCausalLM(model_config)


def require_memory(
    config: TrainConfig, data: TextShape, mixer: MixerConfig, num_shares: int, memory_bytes: int
) -> None:
    """Refuse a student whose weights, gradients and AdamW's moments alone do not fit.

    Args:
        config: of the run.
        data: gives the vocabulary and the context.
        mixer: its settings, with the number of concepts.
        num_shares: devices that each hold a share of every tensor.
        memory_bytes: memory of one device.
    """
    with torch.device("meta"):
        num_parameters = sum(parameter.numel() for parameter in build_student(config, data, mixer).parameters())
    needed = TRAINING_BYTES_PER_PARAMETER * num_parameters // num_shares
    if needed > memory_bytes:
        raise CocomixError(
            f"the student has {format_count(num_parameters)} parameters: weights, gradients and moments alone take "
            f"{format_bytes(needed)}, and a device has {format_bytes(memory_bytes)}; choose smaller sizes, or more devices "
            "with --parallel.strategy fsdp"
        )


def build_objectives(config: TrainConfig, batches: Batches) -> list[Objective]:
    """The objectives that are on; they share one teacher, loaded when first read."""

    @functools.cache
    def teacher() -> PreTrainedModel:
        labels = batches.more.get(CONCEPT_LABELS)
        is_live = labels is not None and isinstance(labels.source, TeacherLabels)
        assert config.teacher is not None
        model = labels.source.extractor.teacher.model if labels and is_live else load_teacher(config.teacher)
        check_data(model, config.teacher, batches.data)
        return model

    student, mixer = config.student, trained_mixer(config, batches)
    surroundings = Surroundings(student.hidden_size, student.num_layers, mixer, teacher, config.seed)
    return [each.implementation()(each, surroundings) for each in config.objectives if each.is_on(config)]
