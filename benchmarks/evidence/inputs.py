"""What students learn from: a dataset, a teacher, its dictionary, and labels, each made when it is first asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import cocomix
from benchmarks.evidence.corpora import Places, prepare_config
from cocomix import AttributionConfig, ExtractConfig, StudentConfig, TrainSaeConfig, extract, prepare, train, train_sae
from cocomix.base.artifacts import fingerprint_of_json
from cocomix.labels.config import DERIVED_CONTROLS
from cocomix.modeling.flops import span_flops_per_token
from cocomix.training.config import TrainConfig
from cocomix.training.sizes import SIZES, Size
from cocomix.training.widths import meta_model

#: Of the dictionaries, as in the demo.
NUM_ACTIVE_LATENTS = 16


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher as a share of its students.

    Args:
        what: for people.
        shape: of the decoder; None: the size's own teacher, which has its students' shape.
        layer: 0-based block after which its dictionary reads; None: the size's.
        tokens: it is trained on.
        dictionary_tokens: its dictionary is trained on.
    """

    what: str
    shape: StudentConfig | None
    layer: int | None
    tokens: int
    dictionary_tokens: int = 1_000_000

    def shape_at(self, size: Size) -> StudentConfig:
        return self.shape or size.teacher

    def dictionary_tokens_at(self, size: Size) -> int:
        return min(self.dictionary_tokens, size.num_tokens)

    def layer_at(self, size: Size) -> int:
        return size.teacher_layer if self.layer is None else self.layer


TEACHERS = {
    "weak": TeacherSpec(
        "three quarters of its students' width and blocks",
        StudentConfig(family="gpt2", hidden_size=96, num_layers=3, num_heads=3),
        1,
        750_000,
    ),
    "strong": TeacherSpec("the shape of its students", None, None, 2_000_000),
}


@cache
def dictionary_flops(teacher: str, size: Size, num_latents: int | None = None) -> float:
    """Of training a dictionary: the teacher up to it, then encoder and decoder forward and backward, as if dense.

    Args:
        teacher: name.
        size: of the students.
        num_latents: C; None: the size's.
    """
    spec = TEACHERS[teacher]
    shape = spec.shape_at(size)
    model = meta_model(TrainConfig(student=shape), size)
    C, D = num_latents or size.num_concepts, shape.hidden_size
    teacher_flops = span_flops_per_token(model.adapter, 0, spec.layer_at(size) + 1, size.context_length)
    return spec.dictionary_tokens_at(size) * (teacher_flops + 3 * (2 + 2) * C * D)


class Inputs:
    """Folders of one corpus, teacher and size.

    Args:
        places: on this machine.
        corpus: name.
        teacher: None for students that learn without one.
        size: name.
        folder: for teacher, dictionary, labels and runs.
    """

    def __init__(self, places: Places, corpus: str, teacher: TeacherSpec | None, size: str, folder: Path) -> None:
        self.places, self.corpus, self.spec = places, corpus, teacher
        self.size, self.folder = SIZES[size], folder

    @cached_property
    def data(self) -> Path:
        config = prepare_config(self.corpus, self.size, self.places)
        prepare(config)
        return config.output

    @cached_property
    def teacher(self) -> Path:
        spec, size = self.spec, self.size
        assert spec is not None
        output = self.folder / "teacher"
        config = cocomix.recipe(
            f"gpt2-{size.name}-ntp",
            data=self.data,
            output=output,
            student=spec.shape_at(size),
            num_tokens=spec.tokens,
        )
        train(config)
        return output

    def sae(self, num_latents: int | None = None) -> Path:
        """A dictionary of the teacher.

        Args:
            num_latents: C; None: the size's.
        """
        assert self.spec is not None
        C = num_latents or self.size.num_concepts
        output = self.folder / f"sae-{C}"
        train_sae(
            TrainSaeConfig(
                teacher=self.teacher,
                data=self.data,
                output=output,
                layer=self.spec.layer_at(self.size),
                num_latents=C,
                k=NUM_ACTIVE_LATENTS,
                num_tokens=self.spec.dictionary_tokens_at(self.size),
                num_counted_tokens=0,
            )
        )
        return output

    def labels(self, attribution: AttributionConfig, num_windows: int, num_latents: int | None = None) -> Path:
        """A concept dataset of the first windows, as many as the longest run needs."""
        sae = self.sae(num_latents)
        named = fingerprint_of_json({"attribution": vars(attribution), "windows": num_windows})[:12]
        output = self.folder / f"labels-{sae.name}-{named}"
        if attribution.control in DERIVED_CONTROLS:
            source = {"labels": self.labels(replace(attribution, control="none", seed=0), num_windows, num_latents)}
        else:
            source = {"teacher": self.teacher, "sae": sae}
        extract(
            ExtractConfig(data=self.data, output=output, attribution=attribution, num_windows=num_windows, **source)
        )
        return output


def windows_of(num_tokens: int, size: Size) -> int:
    """Training windows of a run; its last step may take some of the first ones again."""
    return -(-num_tokens // size.context_length)
