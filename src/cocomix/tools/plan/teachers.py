"""The shape of a teacher that does not exist yet, or is not loaded."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from cocomix.base import artifacts
from cocomix.base.hub import require_known_place
from cocomix.base.remote_code import is_trusted
from cocomix.modeling.loading import load_config
from cocomix.training.config import TrainConfig
from cocomix.training.sizes import Size
from cocomix.training.students import TextShape
from cocomix.training.widths import meta_model

#: Shapes that need no file.
_KNOWN_SHAPES = {"gpt2": GPT2Config, "openai-community/gpt2": GPT2Config}


@dataclass(frozen=True)
class PlannedTeacher:
    """A teacher used to count costs."""

    name: str
    """Name shown to the user: the given one, or a description of the assumed teacher."""
    model: PreTrainedModel
    """The frozen model, on the meta device."""
    layer: int
    """0-based block after which the autoencoder reads."""

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def planned_teacher(config: TrainConfig, size: Size | None, text: TextShape) -> PlannedTeacher:
    """The teacher of a run: the given one, or that of the recipe's size, or GPT-2 124M.

    Raises:
        CocomixError: the configuration of `teacher` can't be read.
    """
    if config.teacher is None and size is not None:
        planned = teacher_of_size(size, text)
    else:
        name = "gpt2" if config.teacher is None else str(config.teacher)
        shape = _shape(name)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape, trust_remote_code=is_trusted()).requires_grad_(False)
        assumed = "GPT-2 124M (assumed; give --teacher)"
        planned = PlannedTeacher(assumed if config.teacher is None else name, model, (shape.num_hidden_layers - 1) // 2)
    return planned if config.layer is None else replace(planned, layer=config.layer)


def teacher_of_size(size: Size, text: TextShape | None = None) -> PlannedTeacher:
    """The teacher used to count the costs of a size's recipes.

    Args:
        size: size of the recipe.
        text: vocabulary and context; by default the size's.
    """
    shape = text or size
    model = _model_of_size(size, shape.vocab_size, shape.context_length)
    student = size.teacher
    name = f"{student.family} of {student.num_layers} blocks, width {student.hidden_size} (assumed; give --teacher)"
    return PlannedTeacher(name, model, size.teacher_layer)


@functools.lru_cache
def _model_of_size(size: Size, vocab_size: int, context_length: int) -> PreTrainedModel:
    text = replace(size, vocab_size=vocab_size, context_length=context_length)
    return meta_model(TrainConfig(student=size.teacher), text).backbone.requires_grad_(False)


def _shape(name: str) -> Any:
    if name in _KNOWN_SHAPES:
        return _KNOWN_SHAPES[name]()
    require_known_place("--teacher", name)
    artifacts.check(Path(name), files=["config.json"])
    return load_config(name)
