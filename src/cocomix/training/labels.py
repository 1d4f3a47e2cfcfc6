"""Where a run's concept labels come from: a concept dataset, or teacher and dictionary on the fly.

Both give the same labels for the same windows, up to rounding: a pass of the teacher over another number of windows can round
differently, and two nearly equal scores then change places.
"""

from __future__ import annotations

from cocomix.data.concept_dataset import ConceptDataset
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.label_sources import TeacherLabels
from cocomix.training.config import TrainConfig

ConceptLabels = ConceptDataset | TeacherLabels


def concept_labels(config: TrainConfig, data: TokenDataset) -> ConceptLabels | None:
    """The labels that a run asks for; models are not loaded yet."""
    if config.labels is not None:
        return ConceptDataset(config.labels, data)
    if config.sae is not None:
        assert config.teacher is not None
        return TeacherLabels(data, config.teacher, config.sae, config.layer, config.attribution)
    return None
