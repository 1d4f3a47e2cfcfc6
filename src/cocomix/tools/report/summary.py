"""All numbers of the report, collected from the folders of the stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.kinds import CONCEPT_DATASET, SPARSE_AUTOENCODER, TOKEN_DATASET, TRAINING_RUN, read_metrics
from cocomix.tools.compare.curves import units_to_match, validation_curve
from cocomix.tools.inspect.cards import read_cards, read_columns

#: Of `steering_example`, in the folder `steering`.
STEERING_NAME = "steering.json"
NUM_CARDS = 20
NUM_CONTEXTS = 5


@dataclass(frozen=True)
class Sources:
    """What the students of an experiment were given."""

    data: Path
    """Token dataset."""
    labels: Path
    """Concept dataset of the student `cocomix`."""
    teacher: Path
    """A model of any origin; of a training run the report says more."""
    sae: Path
    """The teacher's autoencoder, of any origin; of one of `train-sae` the report says more."""
    layer: int | None = None
    """0-based block of the teacher after which it reads; None: as its files say."""


def summarize(root: Path, titles: Mapping[str, str], sources: Sources, seed: int) -> dict[str, Any]:
    """The summary of an experiment; see `docs/demo.md` for what each number means.

    Args:
        root: folder of the experiment, with one for every stage.
        titles: what students are called, by name; `ntp` and `cocomix` among them.
        sources: what they were given.
        seed: of the experiment.
    """
    corpus = artifacts.read(sources.data, TOKEN_DATASET, files=())
    concepts = artifacts.read(sources.labels, CONCEPT_DATASET)
    students = {name: _student(root, name, title) for name, title in titles.items()}
    ntp_curve, cocomix_curve = students["ntp"]["curve"], students["cocomix"]["curve"]
    dictionary = _sae(sources.sae)
    return {
        "seed": seed,
        "corpus": {"context_length": corpus.facts["context_length"], "vocab_size": corpus.facts["vocab_size"]}
        | {name: dict(counts) for name, counts in corpus.facts["splits"].items()},
        "teacher": _teacher(sources.teacher, dictionary),
        "sae": dictionary,
        "labels": {
            "attribution": concepts.settings["attribution"],
            "num_concepts": concepts.facts["num_concepts"],
            "num_tokens": concepts.settings["num_windows"] * corpus.facts["context_length"],
            "flops_per_token": concepts.facts["flops_per_token"],
            "seconds": concepts.facts["seconds"],
        },
        "students": list(students),
        **students,
        "probes": students["cocomix"]["probes"],
        "tokens_to_match_ntp": units_to_match(cocomix_curve, ntp_curve, "train_tokens"),
        "flops_to_match_ntp": units_to_match(cocomix_curve, ntp_curve, "train_flops"),
        "seconds_to_match_ntp": units_to_match(cocomix_curve, ntp_curve, "train_seconds"),
        "concepts": _cards(root / "inspection"),
        "steering": artifacts.read_json(root / "steering" / STEERING_NAME),
    }


def _teacher(path: Path, dictionary: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of a training run whose dictionary measured its loss."""
    manifest = artifacts.check(path)
    if manifest is None or manifest.kind != TRAINING_RUN or dictionary is None:
        return None
    return _run_facts(path) | {"validation_loss": dictionary["loss"]}


def _sae(path: Path) -> dict[str, Any] | None:
    """Quality and settings of a dictionary of `train-sae`."""
    manifest = artifacts.check(path)
    if manifest is None or manifest.kind != SPARSE_AUTOENCODER:
        return None
    settings = {name: manifest.settings[name] for name in ("layer", "num_latents", "k")}
    facts = {name: manifest.facts[name] for name in ("train_tokens", "train_seconds")}
    return dict(manifest.facts["quality"]) | settings | facts


def most_used_concepts(inspection: Path) -> list[int]:
    """The concepts of an inspection that are labels most often."""
    counts = read_columns(inspection, "num_labels")["num_labels"]
    return sorted(range(len(counts)), key=lambda concept: (-counts[concept], concept))[:NUM_CARDS]


def _cards(inspection: Path) -> list[dict[str, Any]]:
    """The cards of the most used concepts, as the report shows them."""
    total = sum(read_columns(inspection, "num_labels")["num_labels"])
    return [
        {
            "concept": card.concept,
            "name": card.name,
            "label_share": (card.num_labels or 0) / max(total, 1),
            "contexts": [dataclasses.asdict(context) for context in card.contexts_of("sae")[:NUM_CONTEXTS]],
        }
        for card in read_cards(inspection, most_used_concepts(inspection))
    ]


def _student(root: Path, name: str, title: str) -> dict[str, Any]:
    facts = _run_facts(root / name)
    student = facts["settings"]["student"]
    return {
        "title": title,
        "mixer": student["mixer"],
        "mixing": student.get("mixing", "none"),
        **facts,
        **artifacts.read_json(root / "evaluation" / name / "evaluation.json"),
        "curve": validation_curve(read_metrics(root / name)),
    }


def _run_facts(run: Path) -> dict[str, Any]:
    manifest = artifacts.read(run, TRAINING_RUN)
    names = ("train_tokens", "train_flops", "teacher_flops", "train_seconds", "num_parameters")
    settings = {name: value for name, value in manifest.settings.items() if name != "inputs"}
    return {name: manifest.facts[name] for name in names} | {"settings": settings}
