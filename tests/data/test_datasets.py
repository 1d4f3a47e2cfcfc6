"""Token and concept datasets: samples, label round trips, and damage."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from cocomix import CocomixError, ConceptDataset, PrepareConfig, TokenDataset, prepare
from cocomix.data.concept_dataset import write_labels
from cocomix.data.order import windows_of_step
from cocomix.data.shards import WindowTable
from cocomix.data.token_dataset import Windows, positions_in_documents
from tests.conftest import Tiny


def rows(batches: Iterable[Windows]) -> torch.Tensor:
    return torch.cat([windows.input_ids for windows in batches])


def test_batches_are_evenly_spaced_and_complete(tiny: Tiny) -> None:
    data = TokenDataset(tiny.data, "validation")
    whole = rows(data.batches(7))
    assert torch.equal(whole, data.input_ids(range(data.num_windows)))
    assert min(len(batch) for batch in data.batches(7)) > 1
    some = rows(data.batches(4, 10))
    assert torch.equal(some, data.input_ids([i * data.num_windows // 10 for i in range(10)]))
    assert len(rows(data.batches(4, 10**6))) == data.num_windows
    mixed = rows(data.batches(4, mixed=True))
    assert not torch.equal(mixed, whole)
    assert sorted(mixed.tolist()) == sorted(whole.tolist())


@pytest.mark.parametrize("num_concepts", [300, 2**16 + 5])
def test_labels_survive_storing(tmp_path: Path, num_concepts: int) -> None:
    labels = torch.randint(0, num_concepts, (5, 4, 3))
    labels[:, -1] = -100
    write_labels(tmp_path, 0, labels, num_concepts)
    flat = torch.from_numpy(WindowTable(tmp_path, 1).take("labels", [3, 0]))
    restored = flat.view(2, 4, 3)
    assert torch.equal(restored.masked_fill(restored == num_concepts, -100), labels[[3, 0]])


def test_labels_of_another_dataset_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    prepare(PrepareConfig(tmp_path, (tiny.corpus,), vocab_size=300, context_length=8, validation_fraction=0.2))
    with pytest.raises(CocomixError, match="belong to another token dataset"):
        ConceptDataset(tiny.concepts, TokenDataset(tmp_path))


def test_a_flipped_byte_in_a_shard_is_named(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "concepts"
    shutil.copytree(tiny.concepts, copy)
    shard = copy / "00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CocomixError, match=r"00000.parquet does not match its checksum"):
        ConceptDataset(copy, TokenDataset(tiny.data))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=r"lacks 00000.parquet"):
        WindowTable(tmp_path, 1)


class TestOrder:
    """Which windows a step sees."""

    def test_an_epoch_sees_every_window_once_and_batches_cross_its_end(self) -> None:
        steps = np.concatenate([windows_of_step(3, step, 4, 10) for step in range(5)])
        assert sorted(steps[:10]) == sorted(steps[10:]) == list(range(10))
        assert list(steps[:10]) != list(steps[10:])

    def test_it_depends_on_seed_and_step_alone(self) -> None:
        assert list(windows_of_step(1, 7, 4, 50)) == list(windows_of_step(1, 7, 4, 50))
        assert list(windows_of_step(1, 7, 4, 50)) != list(windows_of_step(2, 7, 4, 50))


def test_a_dataset_made_again_in_the_same_place_is_read_anew(tiny: Tiny, tmp_path: Path) -> None:
    settings = {"output": tmp_path, "text": (tiny.corpus,), "vocab_size": 300, "validation_fraction": 0.2}
    prepare(PrepareConfig(context_length=16, **settings))  # type: ignore[arg-type]
    first = TokenDataset(tmp_path).input_ids([0, 1])
    prepare(PrepareConfig(context_length=16, seed=1, overwrite=True, **settings))  # type: ignore[arg-type]
    assert not torch.equal(TokenDataset(tmp_path).input_ids([0, 1]), first)


def test_positions_start_over_in_each_document() -> None:
    documents = torch.tensor([[3, 3, 3, 4, 4, 5], [7, 7, 7, 7, 7, 7]])
    assert positions_in_documents(documents).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]


def test_isolation_is_decided_when_the_dataset_is_prepared(tiny: Tiny, tmp_path: Path) -> None:
    prepare(PrepareConfig(tmp_path, (tiny.corpus,), vocab_size=300, context_length=16, isolate_documents=True))
    isolated, joined = TokenDataset(tmp_path), TokenDataset(tiny.data)
    assert joined.windows([0]).position_ids is None
    windows = isolated.windows(range(isolated.num_windows))
    assert torch.equal(windows.position_ids, positions_in_documents(isolated.document_ids(range(isolated.num_windows))))
    assert isolated.parts["windows"] != joined.parts["windows"]


def test_a_damaged_cache_is_made_again(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.concepts, tmp_path / "labels")
    tokens = TokenDataset(str(tiny.data))
    expected = ConceptDataset(str(tmp_path / "labels"), tokens).labels(range(8))
    for cache in (tmp_path / "labels" / ".arrow").rglob("*.arrow"):
        damaged = bytearray(cache.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        cache.write_bytes(damaged)
    assert torch.equal(ConceptDataset(tmp_path / "labels", tokens).labels(range(8)), expected)


def test_several_open_a_dataset_for_the_first_time_at_once(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.data, tmp_path / "data", ignore=shutil.ignore_patterns(".arrow*"))
    expected = TokenDataset(tiny.data).input_ids(range(8))
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: TokenDataset(tmp_path / "data"), range(4)))
    assert all(torch.equal(data.input_ids(range(8)), expected) for data in opened)
    (cache,) = (tmp_path / "data" / "train" / ".arrow").rglob("*.arrow")
    made_at = cache.stat().st_mtime_ns
    TokenDataset(tmp_path / "data")
    assert cache.stat().st_mtime_ns == made_at
