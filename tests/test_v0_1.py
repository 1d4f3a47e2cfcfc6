"""What cocomix 0.1.0 wrote is still read: a folder of every kind (`fixtures/v0_1/README.md`), and what was in it then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import cocomix
from cocomix import (
    CardReader,
    CoCoMixForCausalLM,
    CompareConfig,
    ConceptDataset,
    SparseAutoencoder,
    TargetDataset,
    TokenDataset,
    compare,
    load_causal_lm,
)

# What has no public name.
from cocomix.base import artifacts
from cocomix.cli.main import main

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
#: float32 sums of another order (another CPU or torch) differ by a few 1e-7 of logits of about 1; rounded to 6 digits.
TOLERANCE = 1e-5
#: A run that goes on elsewhere rounds otherwise from there on; Adam divides by the gradients' size, so that small ones count.
MODELS = ("demo/teacher", "demo/ntp", "demo/cocomix", "pause", "saved")
DATA = ("demo/data", "streamed")
LABELS = ("demo/concepts", "attribution")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: readers leave caches beside what they read."""
    return Path(shutil.copytree(FIXTURES, tmp_path_factory.mktemp("fixtures") / "v0_1"))


def describe(root: Path) -> dict[str, dict[str, Any]]:
    """What is expected of each folder; `expected.json` is what this returned with 0.1.0."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(root.rglob("manifest.json")):
        manifest = artifacts.read_json(file)
        name = file.parent.relative_to(root).as_posix()
        found[name] = {"kind": manifest["kind"], "fingerprint": manifest["fingerprint"]}
    for name in MODELS:
        found.setdefault(name, {})["logits"] = logits(load_causal_lm(root / name))
    for name in DATA:
        found[name]["windows"] = windows(root / name)
    data = TokenDataset(root / "demo/data")
    for name in LABELS:
        found[name]["labels"] = labels(ConceptDataset(root / name, data))
    found["targets"]["targets"] = targets(TargetDataset(root / "targets", data))
    found["demo/sae"]["reconstruction"] = reconstruction(SparseAutoencoder.from_pretrained(root / "demo/sae"))
    found["unfinished"] = {"loss": resumed_loss(root)}
    return found


def logits(model: torch.nn.Module) -> list[float]:
    """Of the last of a few tokens."""
    with torch.no_grad():
        return rounded(model(input_ids=torch.tensor([[5, 17, 40, 3, 40, 9]])).logits[0, -1])


def windows(path: Path) -> dict[str, Any]:
    train, validation = TokenDataset(path, "train"), TokenDataset(path, "validation")
    first = train.windows([0])
    return {
        "train": [train.num_windows, train.context_length],
        "validation": [validation.num_windows, validation.context_length],
        "vocab_size": train.vocab_size,
        "input_ids": first.input_ids[0].tolist(),
        "position_ids": None if first.position_ids is None else first.position_ids[0].tolist(),
        "text": train.tokenizer().decode(first.input_ids[0]),
    }


def labels(dataset: ConceptDataset) -> dict[str, Any]:
    found = dataset.labels(range(dataset.num_windows))
    scores = rounded(dataset.scores([0])[0, 3]) if dataset.settings["scores"] else None
    return {
        "shape": list(found.shape),
        "num_concepts": dataset.num_concepts,
        "at": found[0, 3].tolist(),
        "scores": scores,
    }


def targets(dataset: TargetDataset) -> dict[str, Any]:
    found = dataset.targets(range(dataset.num_windows))
    return {"shape": list(found.tokens.shape), "at": found.tokens[0, 3].tolist(), "entropy": rounded(found.entropy[0])}


def reconstruction(sae: SparseAutoencoder) -> list[float]:
    return rounded(sae(torch.linspace(-1, 1, 16)[None])[0])


def last_loss(run: Path) -> float:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["validation_loss"] for line in lines if "validation_loss" in line][-1]


def rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


@pytest.mark.parametrize("name", [name for name, about in EXPECTED.items() if "kind" in about])
def test_folders_are_what_they_were(root: Path, name: str) -> None:
    manifest = artifacts.read(root / name, EXPECTED[name]["kind"])
    assert manifest.fingerprint == EXPECTED[name]["fingerprint"]
    assert manifest.files


def test_every_kind_is_there() -> None:
    assert {about.get("kind") for about in EXPECTED.values()} - {None} == {
        "comparison",
        "concept-dataset",
        "concept-inspection",
        "demo",
        "evaluation",
        "sparse-autoencoder",
        "steering-example",
        "steering-score",
        "target-dataset",
        "token-dataset",
        "training-run",
    }


@pytest.mark.parametrize("name", MODELS)
def test_models_predict_what_they_did(root: Path, name: str) -> None:
    expected = pytest.approx(EXPECTED[name]["logits"], abs=TOLERANCE)
    model = load_causal_lm(root / name)
    assert isinstance(model, CoCoMixForCausalLM) == (name not in ("demo/teacher", "demo/ntp"))
    assert logits(model) == expected
    assert logits(AutoModelForCausalLM.from_pretrained(root / name).eval()) == expected


@pytest.mark.parametrize(("name", "concept", "index"), [("demo/cocomix", "class", 11), ("saved", "Names", 7)])
def test_names_of_concepts_are_known(root: Path, name: str, concept: str, index: int) -> None:
    model = load_causal_lm(root / name)
    with cocomix.steer(model, {concept: 5.0}, mode="set"):
        by_name = logits(model)
    with cocomix.steer(model, {index: 5.0}, mode="set"):
        assert logits(model) == by_name
    assert by_name != logits(model)


@pytest.mark.parametrize("name", DATA)
def test_token_datasets_hold_what_they_held(root: Path, name: str) -> None:
    assert windows(root / name) == EXPECTED[name]["windows"]


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_what_they_were(root: Path, name: str) -> None:
    assert labels(ConceptDataset(root / name, TokenDataset(root / "demo/data"))) == EXPECTED[name]["labels"]


def test_targets_are_what_they_were(root: Path) -> None:
    found = targets(TargetDataset(root / "targets", TokenDataset(root / "demo/data")))
    assert found == EXPECTED["targets"]["targets"]


def test_the_autoencoder_reconstructs_as_it_did(root: Path) -> None:
    found = reconstruction(SparseAutoencoder.from_pretrained(root / "demo/sae"))
    assert found == pytest.approx(EXPECTED["demo/sae"]["reconstruction"], abs=TOLERANCE)


def test_cards_are_read(root: Path) -> None:
    cards = CardReader(root / "demo/inspection")
    assert len(cards) == 16
    assert cards.card(11).name == "class"


def test_runs_are_compared(root: Path) -> None:
    text = compare(CompareConfig(runs=(str(root / "demo/ntp"), str(root / "demo/cocomix"))))
    for run in ("demo/ntp", "demo/cocomix"):
        assert f"{last_loss(root / run):.3f}" in text


def test_an_unfinished_run_with_concepts_is_refused_and_left_alone(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first steps scaled concept vectors back another way: the rest would be another model."""
    run = root / "unfinished"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    inputs = ["--data", str(root / "demo/data"), "--labels", str(root / "demo/concepts")]
    assert main(["train", "--config", str(run), "--output", str(run), *inputs]) == 1
    assert "rescale_epsilon" in capsys.readouterr().err
    assert before.items() <= {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}.items()
