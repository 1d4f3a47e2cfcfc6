"""Sources as rows of `datasets`: files and datasets, streamed or not, and what is wrong with them in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cocomix import CocomixError, PrepareConfig, prepare
from cocomix.data.sources import Files, HubDataset, LeftOut, Source
from cocomix.data.text_files import find_files
from tests.conftest import Tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of `datasets`, empty."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def published(tiny: Tiny, tmp_path: Path) -> Path:
    """A dataset as people publish it: the corpus as Parquet, in two files, with another field."""
    texts = [json.loads(line)["text"] for line in tiny.corpus.read_text().splitlines()]
    folder = tmp_path / "published"
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate((texts[:25], texts[25:])):
        table = pa.table({"id": list(range(len(part))), "content": part})
        pq.write_table(table, folder / "data" / f"train-0000{number}-of-00002.parquet")
    return folder


def dataset(name: Path | str, text_field: str = "content", split: str = "train", config: str | None = None) -> Source:
    return HubDataset(str(name), config, split, text_field)


def read(source: Source, stream: bool, tmp_path: Path, seed: int = 0) -> list[str]:
    return list(source.texts(seed, stream=stream, folder=tmp_path / "copy"))


@pytest.mark.parametrize("stream", [True, False])
def test_files_and_datasets_give_all_texts_in_an_order_of_the_seed(
    tiny: Tiny, tmp_path: Path, published: Path, cache: Path, stream: bool
) -> None:
    expected = [json.loads(line)["text"] for line in tiny.corpus.read_text().splitlines()]
    files = Files(find_files([tiny.corpus]), "text", "text")
    first = read(files, stream, tmp_path)
    assert not cache.exists()  # nothing outside the output folder
    for texts in (first, read(dataset(published), stream, tmp_path)):
        assert texts != expected
        assert sorted(texts) == sorted(expected)
    assert read(files, stream, tmp_path) == first
    assert read(files, stream, tmp_path, seed=1) != first


def test_a_part_of_a_split_and_a_single_file(tiny: Tiny, tmp_path: Path, published: Path) -> None:
    assert len(read(dataset(published, split="train[:50%]"), False, tmp_path)) == 30
    assert len(read(dataset(tiny.corpus, "text"), True, tmp_path)) == 60


@pytest.mark.parametrize("stream", [pytest.param(True, marks=pytest.mark.slow), False])
def test_what_is_not_there_is_named(tmp_path: Path, published: Path, stream: bool) -> None:
    for source, message in (
        (dataset(published, "text"), r'published has no field "text" .*id, content.*--text-field'),
        (dataset(published, split="foo"), r"published .*split.*foo"),
        (dataset("no/such"), r"no/such"),
        (dataset(published, config="de"), r"'de' not found"),
        (dataset(published, "id"), r'published.*"id" holds int'),
    ):
        with pytest.raises(CocomixError, match=message):
            read(source, stream, tmp_path)


def test_blank_rows_are_left_out_and_a_damaged_dataset_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"text": " "}\n')
    rows = dataset(tmp_path / "rows.jsonl", "text")
    assert read(rows, True, tmp_path) == ["one"]
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{oops\n')
    with pytest.raises(CocomixError, match=r"rows.jsonl"):
        read(rows, True, tmp_path)


def test_file_names_play_no_part(tmp_path: Path) -> None:
    sources = []
    for name in ("forth", "back"):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(4):
            (folder / f"{i if name == 'forth' else 9 - i}.txt").write_text(f"text {i}")
        sources.append(Files(find_files([folder]), "text", name))
    forth, back = sources
    assert forth.fingerprint() == back.fingerprint()
    assert read(forth, True, tmp_path) == read(back, True, tmp_path)
    (tmp_path / "back" / "9.txt").write_text("another text")
    assert Files(find_files([folder]), "text", "back").fingerprint() != forth.fingerprint()


def test_prepare_takes_a_dataset_and_one_source_at_a_time(tiny: Tiny, tmp_path: Path, published: Path) -> None:
    settings = {"vocab_size": 300, "context_length": 16, "validation_fraction": 0.2}
    made = prepare(PrepareConfig(tmp_path / "a", dataset=str(published), text_field="content", **settings))  # type: ignore[arg-type]
    # The same documents in a file give the same bytes.
    assert made.files == json.loads((tiny.data / "manifest.json").read_text())["files"]
    with pytest.raises(CocomixError, match=r"--text .*--dataset"):
        PrepareConfig(tmp_path, (tmp_path,), dataset="x")
    with pytest.raises(CocomixError, match=r"--split .*--dataset"):
        PrepareConfig(tmp_path, split="test")


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_left_out_is_counted_however_it_is_read(tmp_path: Path, stream: bool) -> None:
    (tmp_path / "a.jsonl").write_text('"one"\n{"text": null}\n{oops\n{"text": " "}\n"two"\n')
    (tmp_path / "b.txt").write_bytes(b"\xff")
    for _ in range(2):  # from the source, and from a copy
        left_out = LeftOut()
        source = Files(find_files([tmp_path]), "text", "text", skips_errors=True)
        texts = source.texts(0, stream=stream, folder=tmp_path / ".copy", left_out=left_out)
        assert sorted(texts) == ["one", "two"]
        assert (left_out.num_without_text, left_out.num_unreadable) == (2, 2)
        assert [name for name in ("a.jsonl, line 3", "b.txt") if name in " ".join(left_out.problems)] != []
    with pytest.raises(CocomixError, match=r"a.jsonl, line 3|b.txt"):
        read(Files(find_files([tmp_path]), "text", "text"), stream, tmp_path / "other")
    with pytest.raises(CocomixError, match=r"no text in text.*b.txt is not UTF-8"):
        read(Files(find_files([tmp_path / "b.txt"]), "text", "text", skips_errors=True), stream, tmp_path / "other")


def test_a_dataset_has_fields_inside_others_and_rows_without_text(tmp_path: Path) -> None:
    rows = [{"doc": {"text": "one\r\ntwo"}}, {"doc": {"text": None}}, {"doc": None}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        for stream in (True, False):
            left_out = LeftOut()
            texts = dataset(tmp_path / name, "doc.text").texts(0, stream=stream, folder=tmp_path, left_out=left_out)
            assert list(texts) == ["one\ntwo"]
            assert left_out.num_without_text == 2
    for field in ("doc.body", "body.text"):
        with pytest.raises(CocomixError, match=rf'no field "{field}" \(it has doc\)'):
            read(dataset(tmp_path / "rows.jsonl", field), True, tmp_path)


def test_a_file_of_the_current_folder_is_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text('{"content": "text"}\n')
    monkeypatch.chdir(tmp_path)
    assert read(dataset("rows.jsonl"), True, tmp_path) == ["text"]


def test_the_same_bytes_in_another_format_are_another_text(tmp_path: Path) -> None:
    prints = set()
    for name in ("a.txt", "a.json", "a.csv"):
        (tmp_path / name).write_text('["text"]')
        prints.add(Files(find_files([tmp_path / name]), "text", "text").fingerprint())
    assert len(prints) == 3
