"""Labels computed by a teacher and its dictionary: for `extract`, which stores them, and live, while a student trains.

`TeacherLabels` knows its fingerprints at once and loads the models when they are first needed, so that finished work is
recognised without them. Training takes it in place of a concept dataset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cocomix.base import artifacts
from cocomix.base.devices import Machine
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import SPARSE_AUTOENCODER
from cocomix.base.progress import say
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.attribution import ConceptExtractor, ScoredLabels
from cocomix.labels.config import AttributionConfig
from cocomix.labels.gradients import residual_gradient
from cocomix.labels.passes import most_windows
from cocomix.modeling.flops import attention_flops_per_token, head_flops, span_flops_per_token
from cocomix.modeling.loading import check_data
from cocomix.modeling.teacher import load_teacher
from cocomix.sae.find import agreed_layer, local_path, recognise
from cocomix.sae.formats.place import layer_of
from cocomix.sae.formats.readers import num_active_by_name
from cocomix.sae.model import SparseAutoencoder
from cocomix.sae.quality import require_variance, sae_fit_warning

# Shapes: B windows, T tokens, A labels a token.

#: Windows on which the dictionary is tried: enough to see whether it fits the teacher at all.
WINDOWS_PER_FIT = 4
#: Which latents can be labels. Earlier versions filled up with negative scores, and left out positions with too few.
CANDIDATES = "positive scores"


class TeacherLabels:
    """Labels of training windows, computed by a teacher and its dictionary.

    Args:
        data: the windows.
        teacher: causal LM: a folder or a file.
        sae: folder made by `train-sae` for this teacher, or a dictionary of another origin: a file or a folder.
        layer: 0-based block after which the dictionary reads; None: the one that its files name.
        attribution: how labels are chosen.
        machine: the device of both, and the precision of their products; None: a CPU in float32.
        compile: compile the teacher's blocks.

    A training run on these labels depends on its `inputs`.

    Raises:
        CocomixError: the dictionary belongs to another teacher or layer.
    """

    def __init__(
        self,
        data: TokenDataset,
        teacher: Path,
        sae: Path,
        layer: int | None,
        attribution: AttributionConfig,
        machine: Machine | None = None,
        *,
        compile: bool = False,
    ) -> None:
        self.data, self.teacher, self.sae, self.attribution = data, teacher, sae, attribution
        self.machine, self.compile = machine or Machine(), compile
        self.num_windows = data.num_windows
        teacher_fingerprint = artifacts.fingerprint_of_path(teacher)
        sae_fingerprint, self.layer = identify_sae(sae, layer, teacher, teacher_fingerprint)
        self.settings: dict[str, Any] = {
            "teacher": teacher_fingerprint,
            "sae": sae_fingerprint,
            "layer": self.layer,
            "attribution": dataclasses.asdict(attribution),
            "candidates": CANDIDATES,
            **self.machine.settings,
            **({"compile": True} if compile else {}),
        }
        self.inputs = self.settings

    @cached_property
    def extractor(self) -> ConceptExtractor:
        """Teacher and dictionary, loaded when they are first needed."""
        sae = SparseAutoencoder.from_pretrained(self.sae).to(self.machine.device)
        extractor = ConceptExtractor(load_teacher(self.teacher, self.machine), sae, self.layer, self.attribution)
        few = self.data.windows(range(min(WINDOWS_PER_FIT, self.num_windows))).to(self.machine.device)
        with self.machine.products():
            check_data(extractor.teacher.model, self.teacher, self.data)
            residual = extractor.teacher.residual(**few.inputs())
        require_variance(residual, f"{self.teacher} after block {self.layer}")
        try:
            warning = sae_fit_warning(sae, residual)
        except CocomixError as error:
            raise CocomixError(f"{self.sae}: {error}") from None
        if warning is not None:
            say(f"warning: {self.sae}: {warning}")
        if self.compile:
            extractor.teacher.adapter.compile_blocks()
        return extractor

    @property
    def num_concepts(self) -> int:
        return self.extractor.sae.config.num_latents

    @property
    def flops_per_token(self) -> float:
        return extraction_flops_per_token(self.extractor, self.data.context_length)

    def to(self, device: torch.device | str) -> None:
        """Compute on another device from now on."""
        self.extractor.teacher.model.to(device)
        self.extractor.sae.to(device)
        self.machine = dataclasses.replace(self.machine, device=torch.device(device))

    def windows_that_fit(self) -> int:
        """Windows that the teacher reads in one pass, by this machine's memory."""
        extractor = self.extractor

        def one_pass(input_ids: Tensor) -> None:
            h = extractor.teacher.residual(input_ids)
            if self.attribution.criterion == "attribution":
                residual_gradient(extractor.teacher, input_ids, h, loss=self.attribution.loss)

        return most_windows(one_pass, self.machine, self.data.context_length)

    def check(self) -> None:
        """Refuse a teacher that was not finite at some window so far; waits for the device."""
        self.extractor.require_finite(self.teacher)

    def scored(self, windows: Sequence[int] | np.ndarray) -> ScoredLabels:
        """Labels of the given windows and their scores, on the device that they are computed on."""
        inputs = self.data.windows(windows).to(self.extractor.teacher.model.device).inputs()
        with self.machine.products():
            return self.extractor.scored(**inputs)

    def labels(self, windows: Sequence[int] | np.ndarray) -> Int64[Tensor, "B T A"]:
        """Labels of the given windows, as a concept dataset gives them."""
        return self.scored(windows).labels

    def training_flops(self, num_tokens: int, num_windows: int) -> float:
        """Cost of the labels in a run of `num_tokens`; they are computed again whenever a window is seen again."""
        return num_tokens * self.flops_per_token


def extraction_flops_per_token(extractor: ConceptExtractor, context_length: int) -> float:
    """FLOPs of the teacher up to the hook and of the encoder; with attribution also of all above the hook, both ways."""
    adapter, hook, settings = extractor.teacher.adapter, extractor.teacher.layer + 1, extractor.config
    C, D = extractor.sae.config.num_latents, extractor.sae.config.hidden_size
    flops = span_flops_per_token(adapter, 0, hook, context_length) + 2 * C * D
    if settings.criterion != "attribution":
        return flops
    blocks = span_flops_per_token(adapter, hook, adapter.num_blocks, context_length)
    forward = blocks + head_flops(adapter)
    # A frozen weight's product has one in the backward, the gradient of its input; attention's have two.
    backward = forward + attention_flops_per_token(adapter, hook, adapter.num_blocks, context_length)
    flops += forward + backward
    if settings.loss == "next_token":
        flops += blocks  # the cached keys and values
    if settings.value == "pre_activation":
        flops += 2 * 2 * C * D  # all pre-activations, and the gradient along all directions
    return flops


def load_extractor(
    teacher: Path,
    sae: Path,
    attribution: AttributionConfig,
    layer: int | None = None,
    machine: Machine | None = None,
) -> ConceptExtractor:
    """Teacher and dictionary from their folders, at the layer that its files name or the given one, on a machine."""
    _, layer = identify_sae(sae, layer, teacher, artifacts.fingerprint_of_path(teacher))
    model = load_teacher(teacher, machine)
    return ConceptExtractor(model, SparseAutoencoder.from_pretrained(sae).to(model.device), layer, attribution)


def identify_sae(
    sae: Path, layer: int | None, teacher: Path, teacher_fingerprint: str, option: str = "--layer"
) -> tuple[str, int]:
    """Fingerprint and layer of a dictionary; refuses one that `train-sae` made for another teacher or layer.

    `option` is what sets `layer`, for messages.
    """
    if not (sae / artifacts.MANIFEST_NAME).exists() and not (sae / artifacts.SETTINGS_NAME).exists():
        local = local_path(sae)
        layer = agreed_layer(sae, layer_of(local), layer, option)
        return _fingerprint(local), layer
    manifest = artifacts.read(sae, SPARSE_AUTOENCODER)
    if manifest.settings["inputs"]["teacher"] != teacher_fingerprint:
        raise CocomixError(f"the autoencoder {sae} was trained on another teacher than {teacher}")
    return manifest.fingerprint, agreed_layer(sae, int(manifest.settings["layer"]), layer, option)


def _fingerprint(path: Path) -> str:
    """Of all that determines what a dictionary of another origin computes."""
    fingerprint = artifacts.fingerprint_of_path(path)
    if recognise(path) == "qwen_scope":  # a name says part of it
        return artifacts.fingerprint_of_json([fingerprint, num_active_by_name(path)])
    return fingerprint
