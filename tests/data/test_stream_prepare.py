"""Streamed preparation: the same for any number of workers, buckets and interruptions, and what it says it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocomix import CocomixError, PrepareConfig, TokenDataset, prepare
from cocomix.data import external_shuffle, stream_prepare, tokenizing
from cocomix.data.corpus import read_documents
from cocomix.data.external_shuffle import random_bits
from cocomix.data.tokenizing import TokenBatch, digest_of
from tests.conftest import Tiny, write_corpus

SPLITS = ("train", "validation")


def config(tiny: Tiny, output: Path, **settings: object) -> PrepareConfig:
    shared: dict[str, object] = {
        "text": (tiny.corpus,),
        "vocab_size": 300,
        "context_length": 16,
        "validation_fraction": 0.2,
        "stream": True,
    }
    return PrepareConfig(output=output, **shared | settings)  # type: ignore[arg-type]


def texts_of(path: Path, split: str) -> list[str]:
    """Documents of a split in their order, as far as windows hold them."""
    data = TokenDataset(path, split)  # type: ignore[arg-type]
    text = data.tokenizer().decode(data.input_ids(range(data.num_windows)).flatten())
    return text.split("<|endoftext|>")


@pytest.fixture(scope="module")
def streamed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("streamed") / "data"
    prepare(config(tiny, output))
    return output


def test_documents_are_in_the_order_of_their_keys_each_on_the_side_its_hash_says(tiny: Tiny, streamed: Path) -> None:
    documents = [document.text for document in read_documents([tiny.corpus])]
    order = sorted(range(len(documents)), key=lambda number: random_bits(0, number, 0))
    sides: dict[str, list[str]] = {split: [] for split in SPLITS}
    for text in (documents[number] for number in order):
        sides["validation" if random_bits(0, digest_of(text.encode())) < 0.2 * 2**64 else "train"].append(text)
    for split in SPLITS:
        found = texts_of(streamed, split)
        assert found[:-1] == sides[split][: len(found) - 1]
        assert len(sides[split]) - len(found) in (-1, 0)
    facts = json.loads((streamed / "manifest.json").read_text())["facts"]["splits"]
    assert sum(facts[split]["num_documents"] for split in SPLITS) == len(documents)
    assert sum(facts[split]["num_bytes"] for split in SPLITS) == sum(len(text.encode()) for text in documents)
    assert not (streamed / ".stream").exists()


@pytest.mark.parametrize("stream", [True, False])
def test_the_number_of_workers_changes_nothing(tiny: Tiny, streamed: Path, tmp_path: Path, stream: bool) -> None:
    one = TokenDataset(streamed if stream else tiny.data).fingerprint
    assert prepare(config(tiny, tmp_path / "two", stream=stream, num_workers=2)).fingerprint == one


def test_buckets_of_any_size_give_the_same(
    tiny: Tiny, streamed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_shuffle, "MAX_BUCKET_BYTES", 100)  # less than a document: split until one is left
    monkeypatch.setattr(external_shuffle, "DOCUMENTS_PER_READ", 3)
    monkeypatch.setattr(tokenizing, "CHARS_PER_BATCH", 3000)
    assert prepare(config(tiny, tmp_path)).fingerprint == TokenDataset(streamed).fingerprint


@pytest.mark.parametrize("num_batches", [1, 5, 8])
def test_an_interrupted_stream_goes_on(
    tiny: Tiny, streamed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_batches: int
) -> None:
    monkeypatch.setattr(tokenizing, "DOCUMENTS_PER_BATCH", 5)
    monkeypatch.setattr(stream_prepare, "BATCHES_PER_SAVE", 2)
    encode, counts = stream_prepare.encode_in_order, []

    def interrupted(*arguments: Any) -> Iterator[TokenBatch]:
        for number, batch in enumerate(encode(*arguments)):
            if number == num_batches:
                raise KeyboardInterrupt
            yield batch

    def counted(*arguments: Any) -> Iterator[TokenBatch]:
        for batch in encode(*arguments):
            counts.append(len(batch.lengths))
            yield batch

    monkeypatch.setattr(stream_prepare, "encode_in_order", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(tiny, tmp_path))
    monkeypatch.setattr(stream_prepare, "encode_in_order", counted)
    assert prepare(config(tiny, tmp_path)).fingerprint == TokenDataset(streamed).fingerprint
    assert sum(counts) == 60 - num_batches // 2 * 10


def test_a_stream_interrupted_while_it_writes_is_not_read_again(
    tiny: Tiny, streamed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = stream_prepare.WindowWriter.finish

    def interrupted(writer: stream_prepare.WindowWriter) -> dict[str, int]:
        write(writer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stream_prepare.WindowWriter, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(tiny, tmp_path))
    monkeypatch.delattr(stream_prepare, "encode_in_order")
    assert prepare(config(tiny, tmp_path)).fingerprint == TokenDataset(streamed).fingerprint


def test_what_an_interrupted_stream_left_is_not_taken_for_another(tiny: Tiny, tmp_path: Path) -> None:
    left = tmp_path / ".stream"
    (left / "train").mkdir(parents=True)
    (left / "train" / "00.rows").write_bytes(b"something")
    (left / "state.json").write_text(json.dumps({"settings": "other", "files": {"train/00.rows": 9}}))
    made = prepare(config(tiny, tmp_path, seed=3))
    assert made.fingerprint == prepare(config(tiny, tmp_path / "again", seed=3)).fingerprint


def test_a_stream_is_recognised_and_its_settings_are_its_own(tiny: Tiny, streamed: Path, tmp_path: Path) -> None:
    before = (streamed / "manifest.json").stat().st_mtime_ns
    prepare(config(tiny, streamed))
    assert (streamed / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(CocomixError, match=r"stream: true there, null now"):
        prepare(config(tiny, streamed, stream=False))
    assert prepare(config(tiny, tmp_path, seed=1)).fingerprint != TokenDataset(streamed).fingerprint


@pytest.mark.parametrize("stream", [True, False])
def test_copies_are_counted_and_can_be_dropped(tiny: Tiny, tmp_path: Path, stream: bool) -> None:
    lines = tiny.corpus.read_text().splitlines()
    (tmp_path / "text.jsonl").write_text("\n".join([*lines, *lines[:7], lines[0]]))
    settings: dict[str, Any] = {"text": (tmp_path / "text.jsonl",), "stream": stream}
    kept = prepare(config(tiny, tmp_path / "kept", **settings)).facts
    dropped = prepare(config(tiny, tmp_path / "dropped", **settings, drop_duplicates=True)).facts
    assert kept["num_duplicates"] == dropped["num_duplicates"] == 8
    assert sum(split["num_documents"] for split in kept["splits"].values()) == 68
    assert sum(split["num_documents"] for split in dropped["splits"].values()) == 60
    if stream:
        train, validation = (set(texts_of(tmp_path / "kept", split)[:-1]) for split in SPLITS)
        assert not train & validation


def test_repeats_are_found_in_parts_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = np.random.default_rng(0).integers(0, 60, 100).astype("<u8")
    digests.tofile(tmp_path / "digests")
    seen: set[int] = set()
    expected = [digest in seen or bool(seen.add(digest)) for digest in digests.tolist()]  # type: ignore[func-returns-value]
    for size in (1000, 17):
        monkeypatch.setattr(stream_prepare, "DIGESTS_PER_PART", size)
        assert stream_prepare.find_repeats(tmp_path / "digests").tolist() == expected


@pytest.mark.parametrize("stream", [True, False])
def test_only_so_many_tokens(tiny: Tiny, tmp_path: Path, stream: bool) -> None:
    facts = prepare(config(tiny, tmp_path, stream=stream, max_tokens=1000)).facts
    assert facts["splits"]["train"]["num_windows"] == 1000 // 16
    assert facts["splits"]["train"]["num_shards"] == 1
    if not stream:
        some, whole = TokenDataset(tmp_path), TokenDataset(tiny.data)
        assert (some.input_ids(range(62)) == whole.input_ids(range(62))).all()


def test_only_so_many_bytes_of_a_stream(tiny: Tiny, tmp_path: Path) -> None:
    facts = prepare(config(tiny, tmp_path, max_bytes=20_000)).facts
    assert 19_990 < sum(split["num_bytes"] for split in facts["splits"].values()) <= 20_000


def test_files_of_a_folder_come_in_an_order_of_the_seed(tiny: Tiny, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for i in range(6):
        write_corpus(text / f"{i}.jsonl", num_documents=10, seed=i)
    made = prepare(config(tiny, tmp_path / "a", text=(text,)))
    assert made.fingerprint == prepare(config(tiny, tmp_path / "b", text=(text,))).fingerprint
    (text / "5.jsonl").write_text("\n".join((text / "5.jsonl").read_text().splitlines()[:-1]))
    with pytest.raises(CocomixError, match=r"other settings \(text"):
        prepare(config(tiny, tmp_path / "a", text=(text,)))


def test_a_document_that_cannot_be_read_leaves_a_folder_that_can_be_used(tiny: Tiny, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    good = tiny.corpus.read_text()
    text.write_text(good + '{"text": 3}\n')
    with pytest.raises(CocomixError, match=r"text.jsonl, line 61: expected a string"):
        prepare(config(tiny, tmp_path / "data", text=(text,)))
    text.write_text(good)
    prepare(config(tiny, tmp_path / "data", text=(text,)))
    (tmp_path / "empty.txt").write_text(" ")
    with pytest.raises(CocomixError, match=r"no text in .*empty.txt: every document is empty"):
        prepare(config(tiny, tmp_path / "none", text=(tmp_path / "empty.txt",)))
    with pytest.raises(CocomixError, match=r"the validation text has 0 tokens"):
        prepare(config(tiny, tmp_path / "held", text=(text,), validation_fraction=1e-9))
