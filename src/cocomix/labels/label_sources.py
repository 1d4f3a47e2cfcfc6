"""Where labels come from: a teacher with its dictionary, or finished labels that a control is made from.

A source knows its fingerprints at once and loads models when they are first needed: finished work is recognised without them.
`extract` writes down what a source gives; training takes `TeacherLabels` in place of a concept dataset.
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
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import SPARSE_AUTOENCODER
from cocomix.base.labels import IGNORED_LABEL
from cocomix.base.progress import say
from cocomix.data.concept_dataset import ConceptDataset
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.attribution import ConceptExtractor, ScoredLabels
from cocomix.labels.config import AttributionConfig
from cocomix.labels.controls import draw_labels, shuffle_labels
from cocomix.modeling.flops import attention_flops_per_token, head_flops, span_flops_per_token
from cocomix.modeling.teacher import load_teacher
from cocomix.sae.fit import sae_fit_warning
from cocomix.sae.formats.hub import local_path
from cocomix.sae.model import SparseAutoencoder

# Shapes: B windows, T tokens, A labels a token.

WINDOWS_PER_COUNT = 512
#: Enough to see whether a dictionary fits the teacher at all.
WINDOWS_PER_FIT = 4


class TeacherLabels:
    """Labels of training windows, computed by a teacher and its dictionary.

    Args:
        data: the windows.
        teacher: causal LM: a folder or a file.
        sae: folder made by `train-sae` for this teacher, or a dictionary of another origin: a file or a folder.
        layer: 0-based block after which the dictionary reads; None: the one that `train-sae` wrote down.
        attribution: how labels are chosen.

    `inputs` are what a training run on these labels depends on.

    Raises:
        CocomixError: the dictionary belongs to another teacher or layer.
    """

    def __init__(
        self, data: TokenDataset, teacher: Path, sae: Path, layer: int | None, attribution: AttributionConfig
    ) -> None:
        self.data, self.teacher, self.sae, self.attribution = data, teacher, sae, attribution
        self.num_windows = data.num_windows
        teacher_fingerprint = artifacts.fingerprint_of_path(teacher)
        sae_fingerprint, self.layer = identify_sae(sae, layer, teacher, teacher_fingerprint)
        self.settings: dict[str, Any] = {
            "teacher": teacher_fingerprint,
            "sae": sae_fingerprint,
            "layer": self.layer,
            "attribution": dataclasses.asdict(attribution),
        }
        self.inputs = self.settings

    @cached_property
    def extractor(self) -> ConceptExtractor:
        """Teacher and dictionary, loaded when they are first needed."""
        sae = SparseAutoencoder.from_pretrained(self.sae)
        extractor = ConceptExtractor(load_teacher(self.teacher), sae, self.layer, self.attribution)
        self.data.check_model(self.teacher, extractor.teacher.model.config.vocab_size)
        few = self.data.windows(range(min(WINDOWS_PER_FIT, self.num_windows)))
        warning = sae_fit_warning(sae, extractor.teacher.residual(**few.inputs()))
        if warning is not None:
            say(f"warning: {self.sae}: {warning}")
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

    def scored(self, windows: Sequence[int] | np.ndarray) -> ScoredLabels:
        device = self.extractor.teacher.model.device
        return self.extractor.scored(**self.data.windows(windows).to(device).inputs())

    def labels(self, windows: Sequence[int] | np.ndarray) -> Int64[Tensor, "B T A"]:
        """Labels of the given windows, as a concept dataset gives them."""
        return self.scored(windows).labels

    def training_flops(self, num_tokens: int, num_windows: int) -> float:
        """What labels cost in a run of `num_tokens`: computed again whenever a window is seen again."""
        return num_tokens * self.flops_per_token


class DerivedLabels:
    """The controls `shuffled` and `frequency`, made from finished labels.

    Args:
        data: the windows.
        source: concept dataset with the true labels; its attribution settings hold here too.
        attribution: the control and its seed.
    """

    def __init__(self, data: TokenDataset, source: Path, attribution: AttributionConfig) -> None:
        self.data, self.control, self.seed = data, attribution.control, attribution.seed
        self.source = ConceptDataset(source, data)
        self.num_windows, self.num_concepts = self.source.num_windows, self.source.num_concepts
        self.flops_per_token = self.source.flops_per_token  # the true labels had to be computed
        self.settings: dict[str, Any] = {
            "labels": self.source.fingerprint,
            "attribution": self.source.settings["attribution"] | {"control": self.control, "seed": self.seed},
        }

    @cached_property
    def histogram(self) -> Int64[Tensor, " C"]:
        """How often each concept is a label of the source, over all its windows."""
        counts = torch.zeros(self.num_concepts, dtype=torch.long)
        for start in range(0, self.num_windows, WINDOWS_PER_COUNT):
            labels = self.source.labels(range(start, min(start + WINDOWS_PER_COUNT, self.num_windows)))
            counts += torch.bincount(labels[labels != IGNORED_LABEL], minlength=self.num_concepts)
        return counts

    def scored(self, windows: Sequence[int] | np.ndarray) -> ScoredLabels:
        """Labels; their scores mean nothing and are zero."""
        input_ids, labels = self.data.input_ids(windows), self.source.labels(windows)
        if self.control == "shuffled":
            made = shuffle_labels(input_ids, labels, self.seed)
        else:
            made = draw_labels(input_ids, labels, self.histogram, self.seed)
        return ScoredLabels(made, torch.zeros(made.shape))


def extraction_flops_per_token(extractor: ConceptExtractor, context_length: int) -> float:
    """Teacher up to the hook and the SAE's encoder; with attribution also what is above the hook, forward and backward."""
    adapter, hook, settings = extractor.teacher.adapter, extractor.teacher.layer + 1, extractor.config
    C, D = extractor.sae.config.num_latents, extractor.sae.config.hidden_size
    flops = span_flops_per_token(adapter, 0, hook, context_length) + 2 * C * D
    if settings.criterion == "activation_value":
        return flops
    blocks = span_flops_per_token(adapter, hook, adapter.num_blocks, context_length)
    forward = blocks + head_flops(adapter)
    # A frozen weight's product has one in the backward, the gradient of its input; attention's have two.
    backward = forward + attention_flops_per_token(adapter, hook, adapter.num_blocks, context_length)
    is_plain = (settings.point, settings.loss) == ("original", "all_future")
    is_slow = (settings.point, settings.loss) == ("reconstruction", "all_future")
    # One pass a position, over the positions from it on: (T + 1) / 2 in the mean.
    flops += ((context_length + 1) / 2 if is_slow else 1) * (forward + backward)
    if not is_plain:
        flops += blocks  # the cached keys and values
    if settings.value == "pre_activation":
        flops += 2 * 2 * C * D  # all pre-activations, and the gradient along all directions
    return flops


def identify_sae(sae: Path, layer: int | None, teacher: Path, teacher_fingerprint: str) -> tuple[str, int]:
    """Fingerprint and layer of a dictionary; refuses one that `train-sae` made for another teacher or layer."""
    if not (sae / artifacts.MANIFEST_NAME).exists() and not (sae / artifacts.SETTINGS_NAME).exists():
        found = local_path(sae)
        if found.is_dir() and (layers := sorted(path.parent.name for path in found.glob("layer-*/manifest.json"))):
            raise CocomixError(
                f"{sae} holds autoencoders of several layers; name one of its folders: {', '.join(layers)}"
            )
        if layer is None:
            raise CocomixError(f"{sae} does not say which block of the teacher it reads; give --layer")
        return artifacts.fingerprint_of_path(found), layer
    manifest = artifacts.read(sae, SPARSE_AUTOENCODER)
    if manifest.settings["inputs"]["teacher"] != teacher_fingerprint:
        raise CocomixError(f"the autoencoder {sae} was trained on another teacher than {teacher}")
    trained = int(manifest.settings["layer"])
    if layer not in (None, trained):
        raise CocomixError(
            f"the autoencoder {sae} was trained on layer {trained}, but --layer is {layer}; leave it out"
        )
    return manifest.fingerprint, trained
