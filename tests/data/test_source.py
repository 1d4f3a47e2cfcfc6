"""Datasets that `datasets` loads, read from folders here, and what is wrong with them in one sentence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cocomix import CocomixError, PrepareConfig, prepare
from cocomix.data.corpus import read_documents
from cocomix.data.source import HubDataset
from tests.conftest import Tiny


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A dataset as people publish it: the corpus as Parquet, in two files, with another field."""
    texts = [json.loads(line)["text"] for line in tiny.corpus.read_text().splitlines()]
    folder = tmp_path / "published"
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate((texts[:25], texts[25:])):
        table = pa.table({"id": list(range(len(part))), "content": part})
        pq.write_table(table, folder / "data" / f"train-0000{number}-of-00002.parquet")
    return folder


def config(output: Path, name: Path | str, **settings: object) -> PrepareConfig:
    shared: dict[str, object] = {"vocab_size": 300, "context_length": 16, "validation_fraction": 0.2}
    return PrepareConfig(output, dataset=str(name), **shared | settings)  # type: ignore[arg-type]


def test_a_dataset_gives_what_the_same_text_in_files_gives(tiny: Tiny, tmp_path: Path, folder: Path) -> None:
    made = prepare(config(tmp_path / "data", folder, text_field="content"))
    assert made.fingerprint == json.loads((tiny.data / "manifest.json").read_text())["fingerprint"]
    single = prepare(config(tmp_path / "single", tiny.corpus))
    assert single.fingerprint == made.fingerprint
    part = prepare(config(tmp_path / "part", folder, text_field="content", split="train[:50%]"))
    assert sum(split["num_documents"] for split in part.facts["splits"].values()) == 30


def test_a_dataset_can_be_streamed(tmp_path: Path, folder: Path) -> None:
    made = prepare(config(tmp_path / "data", folder, text_field="content", stream=True))
    assert sum(split["num_documents"] for split in made.facts["splits"].values()) == 60
    again = prepare(config(tmp_path / "again", folder, text_field="content", stream=True))
    assert again.fingerprint == made.fingerprint


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_not_there_is_named(tmp_path: Path, folder: Path, stream: bool) -> None:
    with pytest.raises(CocomixError, match=r'has no field "text" \(it has id, content\); choose one with --text-field'):
        prepare(config(tmp_path / "data", folder, stream=stream))
    with pytest.raises(CocomixError, match=r"published can't be loaded: .*split.*foo"):
        prepare(config(tmp_path / "data", folder, stream=stream, split="foo"))
    with pytest.raises(CocomixError, match=r"no/such can't be loaded: Couldn't (reach|find)"):
        prepare(config(tmp_path / "data", "no/such", stream=stream))
    with pytest.raises(CocomixError, match=r"can't be loaded: .*'de' not found"):
        prepare(config(tmp_path / "data", folder, stream=stream, dataset_config="de"))
    with pytest.raises(CocomixError, match=r'field "id" holds int, not text'):
        prepare(config(tmp_path / "data", folder, stream=stream, text_field="id"))
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").glob("[!.]*"))


def test_one_source_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match="--text and --dataset are both given"):
        PrepareConfig(tmp_path, (tmp_path,), dataset="x")
    with pytest.raises(CocomixError, match="choose a part of a dataset"):
        PrepareConfig(tmp_path, split="test")
    with pytest.raises(CocomixError, match="max_tokens is 5, less than one window of 128"):
        PrepareConfig(tmp_path, max_tokens=5)


def test_empty_rows_are_left_out_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"text": " "}\n')
    rows = HubDataset(str(tmp_path / "rows.jsonl"), None, "train", "text")
    assert [document.text for document in rows.stream(0)] == ["one"]
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{oops\n')
    with pytest.raises(CocomixError, match=r"rows.jsonl can't be (read|loaded)"):
        list(rows.stream(0))


def test_compressed_files_and_any_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress('{"body": "é"}\n{"body": "two"}\n'.encode()))
    with pa.output_stream(str(tmp_path / "b.jsonl.zst"), compression="zstd") as file:
        file.write(b'{"body": "three"}\n')
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"four"))
    pq.write_table(pa.table({"body": ["five"]}), tmp_path / "d.parquet")
    assert [d.text for d in read_documents([tmp_path], "body")] == ["é", "two", "three", "four", "five"]
    with pytest.raises(CocomixError, match=r'"text" string \(it has body\)'):
        list(read_documents([tmp_path / "a.jsonl.gz"]))
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(CocomixError, match=r"a.jsonl.gz can't be read"):
        list(read_documents([tmp_path / "a.jsonl.gz"], "body"))
