"""Streams: the rows of the datasets on disk, aligned, from any address."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from cocomix import CocomixError, ConceptDataset, ExtractConfig, PrepareConfig, TokenDataset, extract, prepare
from cocomix import stream_concepts as stream
from cocomix.base import artifacts
from cocomix.data import windows as windows_module
from tests.conftest import Tiny


@pytest.fixture(scope="module")
def concepts(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of a prefix, with scores, in shards that end where those of the tokens do not."""
    output = tmp_path_factory.mktemp("streamed") / "concepts"
    extract(
        ExtractConfig(
            data=tiny.data,
            output=output,
            teacher=tiny.teacher,
            sae=tiny.sae,
            num_windows=50,
            windows_per_shard=24,
            scores=True,
        )
    )
    return output


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_stream_gives_the_rows_of_the_datasets(tiny: Tiny, concepts: Path, scheme: str) -> None:
    tokens = TokenDataset(tiny.data)
    stored = ConceptDataset(concepts, tokens)
    rows = list(stream(f"{scheme}{tiny.data}", f"{scheme}{concepts}").with_format("torch"))
    windows = range(50)
    assert len(rows) == 50
    assert torch.equal(torch.stack([row["input_ids"] for row in rows]).long(), tokens.input_ids(windows))
    assert torch.equal(torch.stack([row["document_ids"] for row in rows]).long(), tokens.document_ids(windows))
    assert torch.equal(torch.stack([row["labels"] for row in rows]), stored.labels(windows))
    assert torch.equal(torch.stack([row["scores"] for row in rows]), stored.scores(windows))


def test_tokens_alone_and_batches_of_a_loader(tiny: Tiny, concepts: Path) -> None:
    validation = TokenDataset(tiny.data, "validation")
    rows = list(stream(str(tiny.data), split="validation"))
    assert torch.equal(torch.tensor([row["input_ids"] for row in rows]), validation.input_ids(range(len(rows))))
    assert len(rows) == validation.num_windows
    batch = next(iter(DataLoader(stream(str(tiny.data), str(concepts)).with_format("torch"), batch_size=4)))
    assert batch["labels"].shape == (4, 16, 4)


def test_rows_stay_aligned_over_shards_of_other_sizes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows_module, "WINDOWS_PER_SHARD", 7)
    prepare(PrepareConfig(tmp_path, (tiny.corpus,), vocab_size=300, context_length=16, validation_fraction=0.2))
    labels = tmp_path / "labels"
    extract(
        ExtractConfig(
            data=tmp_path, output=labels, teacher=tiny.teacher, sae=tiny.sae, num_windows=40, windows_per_shard=16
        )
    )
    tokens = TokenDataset(tmp_path)
    stored = ConceptDataset(labels, tokens)
    for window, row in enumerate(stream(str(tmp_path), str(labels))):
        assert row["input_ids"] == tokens.input_ids([window])[0].tolist()
        assert row["labels"] == stored.labels([window])[0].tolist()


def test_what_does_not_belong_together_is_refused(tiny: Tiny, concepts: Path, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match="only training windows have labels"):
        stream(str(tiny.data), str(concepts), split="validation")
    with pytest.raises(CocomixError, match=r"manifest.json can't be read"):
        stream(str(tmp_path / "nothing"))
    with pytest.raises(CocomixError, match="holds a token-dataset, not a concept-dataset"):
        stream(str(tiny.data), str(tiny.data))
    other = tmp_path / "other"
    shutil.copytree(tiny.data, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["settings"]["text"] = "another"
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CocomixError, match=r"other/manifest\.json"):
        stream(str(other), str(concepts))
    with artifacts.begin(tmp_path / "unlike", "token-dataset", manifest["settings"]):
        about = shutil.ignore_patterns("settings.json", "manifest.json", ".*")
        shutil.copytree(tiny.data, tmp_path / "unlike", ignore=about, dirs_exist_ok=True)
        artifacts.finish(tmp_path / "unlike", manifest["facts"])
    with pytest.raises(CocomixError, match=r"\(the text differs\)"):
        stream(str(tmp_path / "unlike"), str(concepts))
