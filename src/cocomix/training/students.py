"""Builds what a run trains from its settings: the decoder, its mixer and the objectives.

A decoder that is trained already is loaded, and what of it does not learn is frozen: no gradients, no moments, no place in
checkpoints. Where only shapes count, it is built from its configuration alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, Protocol, cast, runtime_checkable

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from cocomix.base.errors import CocomixError
from cocomix.base.formats import format_bytes, format_count
from cocomix.base.hub import local_model, require_known_place
from cocomix.labels.live import TeacherLabels
from cocomix.mixers.config import MixerConfig
from cocomix.modeling.backbones import adapter_for, supported_families
from cocomix.modeling.configuration import CoCoMixConfig
from cocomix.modeling.families import require_family
from cocomix.modeling.loading import check_data, load_causal_lm, load_config
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.modeling.teacher import load_teacher
from cocomix.objectives.base import CONCEPT_LABELS, Objective, Surroundings
from cocomix.sae.model import SparseAutoencoder
from cocomix.training.batches import Batches
from cocomix.training.config import StudentConfig, TrainConfig

#: Weights in float32; gradients and two moments of what learns, too.
BYTES_PER_WEIGHT, BYTES_PER_LEARNING_WEIGHT = 4, 12


@runtime_checkable
class TextShape(Protocol):
    """The shape of a token dataset, real or planned, on which a decoder's shape depends."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int: ...

    @property
    def eos_token_id(self) -> int: ...


def settled(config: TrainConfig, *, downloads: bool = True) -> TrainConfig:
    """The configuration with a pretrained student's family and sizes, and its folder in place of its Hub name.

    Args:
        config: as the user gave it.
        downloads: whether weights on the Hub are fetched; shapes need only the configuration.

    Raises:
        CocomixError: the decoder's configuration can't be read, is no plain decoder's, or is not as the settings say.
    """
    student = config.student
    if student.pretrained is None:
        return config
    require_known_place("student.pretrained", student.pretrained)
    path = local_model(student.pretrained) if downloads else student.pretrained
    own = load_config(path)
    if isinstance(own, CoCoMixConfig):
        if student.mixer != own.mixer or student.start_from_sae is not None:
            raise CocomixError(
                f"{path} has a mixer already, {own.mixer.describe()}, and is continued with it as it is: give no settings of "
                "a mixer and no student.start_from_sae, in Python student.mixer as its config.json has it"
            )
        own = own.backbone_config
    if own.model_type not in supported_families():
        raise CocomixError(
            f"{path} is a model of the family {own.model_type!r}, which has no adapter (docs/families.md says how to add one)"
        )
    shape = {
        "family": own.model_type,
        "hidden_size": own.hidden_size,
        "num_layers": own.num_hidden_layers,
        "num_heads": own.num_attention_heads,
    }
    for name, value in shape.items():
        if getattr(student, name) not in (None, value):
            raise CocomixError(
                f"student.{name} is {getattr(student, name)}, but that of {path} is {value}; leave it out"
            )
    train = student.train or "all"
    return dataclasses.replace(config, student=dataclasses.replace(student, pretrained=path, train=train, **shape))


def backbone_config(student: StudentConfig, data: TextShape) -> PreTrainedConfig:
    """A decoder configuration of the student's shape, with tied embeddings; a pretrained student's own. Without dropout.

    Family-specific settings (windows, rotary bases, norms) are those of `transformers` or the adapter.

    Raises:
        CocomixError: the family has no adapter, or the width does not suit rotary positions.
    """
    if student.pretrained is not None:
        own = load_config(student.pretrained)
        own = getattr(own, "backbone_config", own)  # of a student that has a mixer already
        for name, value in own.to_dict().items():  # a resumed run would draw other numbers
            if "drop" in name and isinstance(value, float):
                setattr(own, name, 0.0)
        return own
    require_family(student.family)
    adapter = supported_families()[student.family]
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


def build_student(
    config: TrainConfig, data: TextShape, mixer: MixerConfig, *, only_shape: bool = False
) -> CoCoMixForCausalLM:
    """A student with initial weights drawn from the seed; the backbone's are the same for every mixer.

    A pretrained backbone is loaded, and what does not learn is frozen.

    Args:
        config: settled configuration of the run.
        data: gives the vocabulary and the context of a decoder from scratch.
        mixer: its settings, with the number of concepts.
        only_shape: whether a pretrained decoder's weights are left out.

    Raises:
        CocomixError: the decoder or the autoencoder can't be loaded, or the autoencoder does not fit the mixer.
    """
    student, weight = config.student, config.concept_loss.weight
    backbone = backbone_config(student, data)
    whole = CoCoMixConfig(backbone_config=backbone, mixer=mixer, concept_loss_weight=weight)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if student.pretrained is None or only_shape:
            model = CoCoMixForCausalLM(whole)
        elif isinstance(own := load_config(student.pretrained), CoCoMixConfig):
            if mixer != own.mixer:
                raise CocomixError(
                    f"{student.pretrained} has {own.num_concepts} concepts, but the labels have {whole.num_concepts}"
                )
            model = cast(CoCoMixForCausalLM, load_causal_lm(student.pretrained, config=whole))
            model.config.name_or_path = ""
        else:
            sae, decoder = student.start_from_sae, load_causal_lm(student.pretrained, config=backbone)
            decoder.config.name_or_path = ""  # equal runs are equal wherever their inputs lie
            model = CoCoMixForCausalLM.from_backbone(
                decoder,
                sae=None if sae is None else SparseAutoencoder.from_pretrained(sae),
                concept_loss_weight=weight,
                **dataclasses.asdict(mixer),
            )
    if student.pretrained is not None and student.train != "all":
        model.backbone.requires_grad_(False)
        adapter = model.adapter
        for block in adapter.blocks[student.first_learning_block :]:
            block.requires_grad_(True)
        adapter.final_norm.requires_grad_(student.train == "above")
    return model


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
        parameters = list(build_student(config, data, mixer, only_shape=True).parameters())
    num_parameters, num_learning = sum(p.numel() for p in parameters), num_learning_parameters(parameters)
    needed = (BYTES_PER_WEIGHT * num_parameters + BYTES_PER_LEARNING_WEIGHT * num_learning) // num_shares
    if needed > memory_bytes:
        raise CocomixError(
            f"the student has {format_count(num_parameters)} parameters: weights, gradients and moments alone take "
            f"{format_bytes(needed)}, and a device has {format_bytes(memory_bytes)}; choose smaller sizes, or more devices "
            "with --parallel.strategy fsdp"
        )


def num_learning_parameters(parameters: Iterable[torch.nn.Parameter]) -> int:
    """Number of weights that are not frozen."""
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


def build_objectives(config: TrainConfig, batches: Batches, device: torch.device) -> list[Objective]:
    """The objectives that are on; they share one teacher on this rank's device, loaded when first read."""

    @functools.cache
    def teacher() -> PreTrainedModel:
        labels = batches.more.get(CONCEPT_LABELS)
        is_live = labels is not None and isinstance(labels.source, TeacherLabels)
        assert config.teacher is not None
        model = labels.source.extractor.teacher.model if labels and is_live else load_teacher(config.teacher)
        check_data(model, config.teacher, batches.data)
        if config.parallel.compile and not is_live:
            adapter_for(model).compile_blocks()
        return model.to(device)

    student, mixer = config.student, trained_mixer(config, batches)
    surroundings = Surroundings(student.hidden_size, student.num_layers, mixer, teacher, config.seed, device)
    return [each.implementation()(each, surroundings) for each in config.objectives if each.is_on(config)]
