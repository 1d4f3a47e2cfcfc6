"""Concept datasets: the extractor's labels, the same bytes after an interruption, and only for matching inputs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cocomix import AttributionConfig, CocomixError, ConceptDataset, ExtractConfig, TokenDataset, extract
from cocomix.concepts import extraction
from cocomix.concepts.controls import draw_labels, shuffle_labels
from cocomix.concepts.extraction import load_extractor
from tests.conftest import Tiny


def config(tiny: Tiny, output: Path, **settings: object) -> ExtractConfig:
    return ExtractConfig(  # type: ignore[arg-type]
        **{"teacher": tiny.teacher, "sae": tiny.sae, "data": tiny.data, "output": output} | settings
    )


def test_stored_labels_equal_labels_on_the_fly(tiny: Tiny) -> None:
    tokens = TokenDataset(tiny.data)
    concepts = ConceptDataset(tiny.concepts, tokens)
    assert concepts.num_windows == tokens.num_windows
    extractor = load_extractor(tiny.teacher, tiny.sae, AttributionConfig())
    windows = range(16)
    assert torch.equal(concepts.labels(windows), extractor(tokens.input_ids(windows)))


def test_interrupted_and_continued_gives_the_same_bytes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "WINDOWS_PER_SHARD", 32)
    whole = extract(config(tiny, tmp_path / "whole"))
    write = extraction.write_labels

    def until(folder: Path, index: int, labels: torch.Tensor, num_concepts: int) -> None:
        if index == 3:
            raise KeyboardInterrupt
        write(folder, index, labels, num_concepts)

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "write_labels", until)
        with pytest.raises(KeyboardInterrupt):
            extract(config(tiny, tmp_path / "parts"))
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == 3
    parts = extract(config(tiny, tmp_path / "parts"))
    assert parts.files == whole.files
    assert parts.fingerprint == whole.fingerprint
    assert extract(config(tiny, tmp_path / "parts")).fingerprint == whole.fingerprint


def test_a_prefix_can_be_labelled(tiny: Tiny, tmp_path: Path) -> None:
    extract(config(tiny, tmp_path, num_windows=16))
    tokens = TokenDataset(tiny.data)
    some, everything = ConceptDataset(tmp_path, tokens), ConceptDataset(tiny.concepts, tokens)
    assert some.num_windows == 16
    assert torch.equal(some.labels(range(16)), everything.labels(range(16)))
    with pytest.raises(CocomixError, match="num_windows is 1000000"):
        extract(config(tiny, tmp_path / "x", num_windows=10**6))


def test_a_changed_teacher_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    other = tmp_path / "teacher"
    shutil.copytree(tiny.teacher, other)
    (other / "manifest.json").unlink()
    with pytest.raises(CocomixError, match="was trained on another teacher"):
        extract(config(tiny, tmp_path / "x", teacher=other))
    with pytest.raises(CocomixError, match="is unfinished"):
        extract(config(tiny, tmp_path / "x", sae=other))


@pytest.mark.parametrize("control", ["shuffled", "frequency"])
def test_controls_are_made_from_finished_labels(tiny: Tiny, tmp_path: Path, control: str) -> None:
    tokens = TokenDataset(tiny.data)
    attribution = AttributionConfig(control=control, seed=3)  # type: ignore[arg-type]
    made = extract(ExtractConfig(data=tiny.data, output=tmp_path / "a", labels=tiny.concepts, attribution=attribution))
    true, derived = ConceptDataset(tiny.concepts, tokens), ConceptDataset(tmp_path / "a", tokens)
    assert derived.num_windows == true.num_windows
    assert derived.num_concepts == true.num_concepts
    windows = range(4)
    found = derived.labels(windows)
    if control == "shuffled":
        expected = shuffle_labels(tokens.input_ids(windows), true.labels(windows), 3)
    else:
        everything = true.labels(range(true.num_windows))
        histogram = torch.bincount(everything[everything >= 0], minlength=32)
        expected = draw_labels(tokens.input_ids(windows), true.labels(windows), histogram, 3)
    assert torch.equal(found, expected)
    assert made.settings["attribution"]["control"] == control
    assert made.settings["labels"] == true.fingerprint


def test_what_labels_are_made_from_must_be_given_and_nothing_else(tiny: Tiny, tmp_path: Path) -> None:
    shuffled = AttributionConfig(control="shuffled")
    with pytest.raises(CocomixError, match="give --labels, without --teacher"):
        config(tiny, tmp_path, attribution=shuffled)
    with pytest.raises(CocomixError, match="give --labels, without --teacher"):
        config(tiny, tmp_path, attribution=shuffled, labels=tiny.concepts)
    with pytest.raises(CocomixError, match="give --teacher and --sae"):
        config(tiny, tmp_path, sae=None)
    with pytest.raises(CocomixError, match="is for the controls"):
        config(tiny, tmp_path, labels=tiny.concepts)
