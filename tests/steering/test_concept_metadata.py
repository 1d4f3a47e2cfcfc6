"""Names and statistics beside a model: found from the model alone, validated, and not part of the model itself."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cocomix import CocomixError, load_causal_lm
from cocomix.base import artifacts
from cocomix.steering.concept_metadata import (
    DIRECTIONS_NAME,
    STATISTICS_NAME,
    ActivationStatistics,
    ConceptMetadata,
    metadata_of,
    read_metadata,
    write_statistics,
)
from cocomix.steering.concept_names import NAMES_NAME, add_names, write_names
from tests.modeling.helpers import NUM_CONCEPTS, student

NAMES = {7: "import statements", 3: "docstrings", 11: "Docstrings", 20: "string formatting"}


def statistics() -> ActivationStatistics:
    columns = {
        name: torch.rand(NUM_CONCEPTS) + 0.5 for name in ("activation_rate", "mean", "std", "largest", "mean_abs")
    }
    return ActivationStatistics(1000, **columns, directions=torch.randn(NUM_CONCEPTS, 16))


def test_metadata_is_found_from_the_model_alone_and_follows_the_files(tmp_path: Path) -> None:
    student().save_pretrained(tmp_path)
    fingerprint = artifacts.fingerprint_of_path(tmp_path)
    model = load_causal_lm(tmp_path)
    assert metadata_of(model) == metadata_of(student()) == ConceptMetadata(NUM_CONCEPTS)
    write_names(tmp_path, NAMES, NUM_CONCEPTS)
    written = statistics()
    write_statistics(tmp_path, written)
    found = metadata_of(model)
    assert found.names == NAMES
    assert found.statistics is not None
    assert found.statistics.num_tokens == 1000
    assert torch.equal(found.statistics.mean_abs, written.mean_abs)
    assert torch.equal(found.statistics.directions, written.directions)
    assert metadata_of(model) is found
    (tmp_path / NAMES_NAME).write_text('{"2": "edited"}')
    os.utime(tmp_path / NAMES_NAME, ns=(1, 1))
    assert metadata_of(model).names == {2: "edited"}
    assert artifacts.fingerprint_of_path(tmp_path) == fingerprint


def test_a_finished_folder_stays_what_it_was(tmp_path: Path) -> None:
    with artifacts.begin(tmp_path, "thing", {}):
        (tmp_path / "weights").write_text("w")
        made = artifacts.finish(tmp_path)
    write_names(tmp_path, NAMES, NUM_CONCEPTS)
    write_statistics(tmp_path, statistics())
    assert artifacts.read(tmp_path, "thing") == made


def test_existing_names_stay(tmp_path: Path) -> None:
    write_names(tmp_path, {3: "docstrings"}, NUM_CONCEPTS)
    merged = add_names(tmp_path, {3: "other", 4: "docstrings", 5: "self.", 6: "self."}, NUM_CONCEPTS)
    assert merged == {3: "docstrings", 4: "docstrings (4)", 5: "self.", 6: "self. (6)"}
    assert read_metadata(tmp_path, NUM_CONCEPTS).names == merged


@pytest.mark.parametrize(
    ("given", "concept"),
    [(7, 7), ("7", 7), ("import statements", 7), ("Import Statements", 7), ("docstrings", 3), ("Docstrings", 11)],
)
def test_resolving(given: Any, concept: int) -> None:
    assert ConceptMetadata(NUM_CONCEPTS, NAMES).resolve(given) == concept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("import statement", r"'import statement'.* 'import statements'"),
        ("DOCSTRINGS", r"'DOCSTRINGS'.* 3 \(docstrings\) and 11 \(Docstrings\)"),
        (24, "concept 24 .* 0 to 23"),
        ("-1", "concept -1 "),
        (True, "concept True "),
        (1.5, r"concept 1\.5 "),
    ],
)
def test_what_does_not_resolve(given: Any, message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        ConceptMetadata(NUM_CONCEPTS, NAMES).resolve(given)


def test_a_name_where_there_are_none() -> None:
    with pytest.raises(CocomixError, match="cocomix inspect"):
        ConceptMetadata(NUM_CONCEPTS).resolve("imports")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"7": "imports"', "JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"7": ' + "9" * 5000 + "}", "digits"),
        ('{"' + "9" * 5000 + '": "a"}', "0 to 23"),
        ('{"7": "\\ud800"}', "concept 7"),
        ('["imports"]', "JSON object"),
        ('{"24": "imports"}', "concept '24'.* 0 to 23"),
        ('{"imports": 7}', "concept 'imports'"),
        ('{"7": 8}', "concept 7 8;"),
        ('{"7": "8"}', "concept 7 '8';"),
        ('{"7": "a\\nb"}', r"concept 7 'a\\nb';"),
        ('{"7": "a", "7": "b"}', "concept 7 .*'a' and 'b'"),
        ('{"7": "a", "8": "a"}', "concept 7 and concept 8 'a'"),
    ],
)
def test_damaged_names_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / NAMES_NAME).write_text(text)
    with pytest.raises(CocomixError, match=f"{NAMES_NAME}.*{message}"):
        read_metadata(tmp_path, NUM_CONCEPTS)


@pytest.mark.parametrize(
    "change",
    [
        {"usual": [1.0]},
        {"mean": [None] * NUM_CONCEPTS},
        {"usual": [0.0] * NUM_CONCEPTS},
        {"mean": [10**400] * NUM_CONCEPTS},
    ],
)
def test_damaged_statistics_are_one_sentence(tmp_path: Path, change: dict[str, Any]) -> None:
    write_statistics(tmp_path, statistics())
    path = tmp_path / STATISTICS_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CocomixError, match=f"{STATISTICS_NAME}.* 24 concepts.*cocomix inspect"):
        read_metadata(tmp_path, NUM_CONCEPTS)


@pytest.mark.parametrize("damage", ["edited", "flipped", "directions deleted"])
def test_what_was_measured_vouches_for_itself(tmp_path: Path, damage: str) -> None:
    write_statistics(tmp_path, statistics())
    path, directions = tmp_path / STATISTICS_NAME, tmp_path / DIRECTIONS_NAME
    stored = json.loads(path.read_text())
    if damage == "edited":
        path.write_text(json.dumps(stored | {"usual": [2.0] * NUM_CONCEPTS}))
    elif damage == "flipped":
        content = bytearray(directions.read_bytes())
        content[-1] ^= 1
        directions.write_bytes(content)
    else:
        directions.unlink()
    with pytest.raises(CocomixError, match=r"concept_(statistics|directions).*cocomix inspect"):
        read_metadata(tmp_path, NUM_CONCEPTS)
    # Version 0.1 recorded no checksums.
    write_statistics(tmp_path, statistics())
    path.write_text(json.dumps({key: stored[key] for key in stored if key not in ("checksum", DIRECTIONS_NAME)}))
    assert read_metadata(tmp_path, NUM_CONCEPTS).statistics is not None


@pytest.mark.parametrize("content", [b"", torch.zeros(3)])
def test_damaged_directions_are_one_sentence(tmp_path: Path, content: Any) -> None:
    write_statistics(tmp_path, statistics())
    path = tmp_path / DIRECTIONS_NAME
    path.write_bytes(content) if isinstance(content, bytes) else save_file({"directions": content}, path)
    with pytest.raises(CocomixError, match=f"{DIRECTIONS_NAME}.*cocomix inspect"):
        read_metadata(tmp_path, NUM_CONCEPTS)


def test_statistics_without_directions_take_old_ones_away(tmp_path: Path) -> None:
    write_statistics(tmp_path, statistics())
    write_statistics(tmp_path, dataclasses.replace(statistics(), directions=None))
    found = read_metadata(tmp_path, NUM_CONCEPTS).statistics
    assert found is not None
    assert found.directions is None
