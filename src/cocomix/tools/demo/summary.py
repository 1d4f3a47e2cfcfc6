"""All numbers of the report, collected from the folders of the stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.kinds import CONCEPT_DATASET, SPARSE_AUTOENCODER, TOKEN_DATASET, TRAINING_RUN, read_metrics
from cocomix.tools.compare.curves import units_to_match, validation_curve
from cocomix.tools.demo import steering_example
from cocomix.tools.demo.sizes import DemoSize, StudentRun
from cocomix.tools.inspect.cards import read_cards, read_columns

NUM_CARDS = 20
NUM_CONTEXTS = 5


def summarize(root: Path, size: DemoSize, seed: int) -> dict[str, Any]:
    """The summary of a finished demo; see `docs/demo.md` for what each number means."""
    data = artifacts.read(root / "data", TOKEN_DATASET)
    sae = artifacts.read(root / "sae", SPARSE_AUTOENCODER)
    concepts = artifacts.read(root / "concepts", CONCEPT_DATASET)
    quality = sae.facts["quality"]
    students = {name: _student(root, name, run) for name, run in size.students.items()}
    ntp_curve, cocomix_curve = students["ntp"]["curve"], students["cocomix"]["curve"]
    return {
        "seed": seed,
        "corpus": {"context_length": data.facts["context_length"], "vocab_size": data.facts["vocab_size"]}
        | {name: dict(counts) for name, counts in data.facts["splits"].items()},
        "teacher": _run_facts(root / "teacher") | {"validation_loss": quality["loss"]},
        "sae": quality
        | {
            "layer": sae.settings["layer"],
            "num_latents": sae.settings["num_latents"],
            "k": sae.settings["k"],
            "train_tokens": sae.facts["train_tokens"],
            "train_seconds": sae.facts["train_seconds"],
        },
        "labels": {
            "attribution": concepts.settings["attribution"],
            "num_tokens": concepts.settings["num_windows"] * data.facts["context_length"],
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
        "steering": artifacts.read_json(root / "steering" / steering_example.RESULT_NAME),
    }


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


def _student(root: Path, name: str, run: StudentRun) -> dict[str, Any]:
    evaluation = artifacts.read_json(root / "evaluation" / name / "evaluation.json")
    student = run.student
    return {
        "title": run.title,
        "mixer": student.mixer.mixer,
        "mixing": getattr(student.mixer, "mixing", "none"),
        **_run_facts(root / name),
        **evaluation,
        "curve": validation_curve(read_metrics(root / name)),
    }


def _run_facts(run: Path) -> dict[str, Any]:
    manifest = artifacts.read(run, TRAINING_RUN)
    names = ("train_tokens", "train_flops", "teacher_flops", "train_seconds", "num_parameters")
    settings = {name: value for name, value in manifest.settings.items() if name != "inputs"}
    return {name: manifest.facts[name] for name in names} | {"settings": settings}
