"""Every number of the report, collected from the folders of the stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.comparison.curves import units_to_match, validation_curve
from cocomix.concepts import sae_training
from cocomix.data import concept_dataset, token_dataset
from cocomix.demo.sizes import DemoSize, StudentRun
from cocomix.training import loop
from cocomix.training.metrics import read_metrics


def summarize(root: Path, size: DemoSize, seed: int) -> dict[str, Any]:
    """The summary of a finished demo; see `docs/demo.md` for what each number means."""
    data = artifacts.read(root / "data", token_dataset.KIND)
    sae = artifacts.read(root / "sae", sae_training.KIND)
    concepts = artifacts.read(root / "concepts", concept_dataset.KIND)
    quality = sae.facts["quality"]
    cards = artifacts.read_json(root / "concept-report" / "concepts.json")
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
        "concepts": cards["most_used"],
        "steering": cards["steering"],
    }


def _student(root: Path, name: str, run: StudentRun) -> dict[str, Any]:
    evaluation = artifacts.read_json(root / "evaluation" / name / "evaluation.json")
    student = run.student
    return {
        "title": run.title,
        "mixer": student.mixer,
        "mixing": student.mixing if student.mixer != "none" else "none",
        **_run_facts(root / name),
        **evaluation,
        "curve": validation_curve(read_metrics(root / name)),
    }


def _run_facts(run: Path) -> dict[str, Any]:
    manifest = artifacts.read(run, loop.KIND)
    names = ("train_tokens", "train_flops", "teacher_flops", "train_seconds", "num_parameters")
    settings = {name: value for name, value in manifest.settings.items() if name != "inputs"}
    return {name: manifest.facts[name] for name in names} | {"settings": settings}
