"""Text to windows: split by document, the same however it is read, reproducible, and clear about what it can't do."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cocomix import CocomixError, PrepareConfig, TokenDataset, prepare
from cocomix.base.artifacts import Manifest
from cocomix.data import document_pile, tokenizing
from cocomix.data import prepare as prepare_module
from cocomix.data import windows as windows_module
from cocomix.data.documents import is_held_out, text_digest
from tests.conftest import Tiny, write_corpus

SPLITS = ("train", "validation")
both = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "copied"])


def config(tiny: Tiny, output: Path, **settings: object) -> PrepareConfig:
    shared: dict[str, object] = {
        "text": (tiny.corpus,),
        "vocab_size": 300,
        "context_length": 16,
        "validation_fraction": 0.2,
    }
    return PrepareConfig(output=output, **shared | settings)  # type: ignore[arg-type]


def files_of(path: Path) -> dict[str, Any]:
    """Size and checksum of every file of a dataset."""
    return dict(json.loads((path / "manifest.json").read_text())["files"])


def texts_of(path: Path, split: str) -> list[str]:
    """Documents of a split in their order, as far as windows hold them whole."""
    data = TokenDataset(path, split)  # type: ignore[arg-type]
    text = data.tokenizer().decode(data.input_ids(range(data.num_windows)).flatten())
    return text.split("<|endoftext|>")[:-1]


def total(manifest: Manifest, count: str = "num_documents") -> int:
    return sum(manifest.facts["splits"][split][count] for split in SPLITS)


def test_windows_hold_the_text_in_order_with_documents_ended(tiny: Tiny) -> None:
    data = TokenDataset(tiny.data, "train")
    ids = data.input_ids(range(data.num_windows))
    assert ids.shape == (data.num_windows, 16)
    assert "naïve text ☕" in data.tokenizer().decode(ids.flatten(), skip_special_tokens=False)
    owners = data.document_ids(range(data.num_windows)).flatten()
    ends = (ids.flatten() == data.eos_token_id).nonzero().flatten()
    # A document's number changes right after its end-of-sequence token, and nowhere else.
    changes = (owners[1:] != owners[:-1]).nonzero().flatten()
    assert set(changes.tolist()) == set(ends.tolist()) - {len(owners) - 1}


def test_documents_are_on_the_side_their_hash_says_in_a_random_order(tiny: Tiny) -> None:
    documents = [json.loads(line)["text"] for line in tiny.corpus.read_text().splitlines()]
    digests = np.array([text_digest(text) for text in documents], np.uint64)
    held_out = is_held_out(digests, 0.2)
    for split in SPLITS:
        chosen = np.flatnonzero(held_out == (split == "validation"))
        in_order = chosen[np.argsort(digests[chosen])][np.random.default_rng(0).permutation(len(chosen))]
        expected = [documents[i] for i in in_order]
        found = texts_of(tiny.data, split)
        assert found == expected[: len(found)]
        assert len(expected) - len(found) in (0, 1)
    manifest = json.loads((tiny.data / "manifest.json").read_text())
    assert sum(manifest["facts"]["splits"][split]["num_documents"] for split in SPLITS) == len(documents)
    assert not (tiny.data / ".work").exists()


def test_the_split_is_a_function_of_the_document_alone(tiny: Tiny, tmp_path: Path) -> None:
    more = write_corpus(tmp_path / "more.jsonl", num_documents=30, seed=5)
    prepare(config(tiny, tmp_path / "data", text=(tiny.corpus, more), seed=3, stream=True))
    before, after = (set(texts_of(path, "validation")) for path in (tiny.data, tmp_path / "data"))
    train = set(texts_of(tmp_path / "data", "train"))
    assert after
    assert not before & train
    assert not after & train


@pytest.mark.parametrize(
    "settings",
    [
        {"stream": True},
        {"num_workers": 2},
        {"stream": True, "num_workers": 2},
        {"batches": 5, "stream": True},
        {"batches": 5},
    ],
    ids=str,
)
def test_however_the_text_is_read_the_bytes_are_the_same(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    settings = dict(settings)
    if size := settings.pop("batches", None):
        monkeypatch.setattr(tokenizing, "DOCUMENTS_PER_BATCH", size)
        monkeypatch.setattr(document_pile, "BATCHES_PER_FILE", 2)
        monkeypatch.setattr(prepare_module, "DOCUMENTS_PER_READ", 3)
    made = prepare(config(tiny, tmp_path, **settings))
    assert made.files == files_of(tiny.data)
    # A stream cut short reads other documents, and an own tokenizer is trained on those that are read first.
    assert made.settings.get("stream") == settings.get("stream")


def test_with_a_given_tokenizer_a_stream_is_recognised_as_the_same(tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = str(tiny.data / "tokenizer")
    made = prepare(config(tiny, tmp_path, tokenizer=tokenizer))
    before = (tmp_path / "manifest.json").stat().st_mtime_ns
    assert prepare(config(tiny, tmp_path, tokenizer=tokenizer, stream=True)).fingerprint == made.fingerprint
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(CocomixError, match=r"^--tokenizer: .*nothing"):
        prepare(config(tiny, tmp_path / "x", tokenizer=str(tmp_path / "nothing")))


def test_equal_settings_are_recognised_and_others_refused(tiny: Tiny, tmp_path: Path) -> None:
    first = prepare(config(tiny, tmp_path)).fingerprint
    assert first == TokenDataset(tiny.data).fingerprint
    assert prepare(config(tiny, tmp_path)).fingerprint == first
    with pytest.raises(CocomixError, match=r"context_length: 16 .*, 8 "):
        prepare(config(tiny, tmp_path, context_length=8))
    assert prepare(config(tiny, tmp_path, seed=1, overwrite=True)).fingerprint != first


def test_shards_join_to_the_same_windows(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "WINDOWS_PER_SHARD", 7)
    prepare(config(tiny, tmp_path))
    whole, parts = TokenDataset(tiny.data), TokenDataset(tmp_path)
    assert len(list((tmp_path / "train").glob("*.parquet"))) > 10
    assert parts.num_windows == whole.num_windows
    windows = np.arange(whole.num_windows)
    assert (parts.input_ids(windows) == whole.input_ids(windows)).all()


class TestInterruption:
    """What was read is not read again, and the bytes are those of an undisturbed process."""

    @both
    @pytest.mark.parametrize("num_batches", [1, 5])
    def test_while_reading(
        self, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_batches: int, stream: bool
    ) -> None:
        monkeypatch.setattr(tokenizing, "DOCUMENTS_PER_BATCH", 5)
        monkeypatch.setattr(document_pile, "BATCHES_PER_FILE", 2)
        encode = prepare_module.encode_in_order
        counts: list[int] = []

        def interrupted(*arguments: Any) -> Iterator[pa.RecordBatch]:
            for number, batch in enumerate(encode(*arguments)):
                if number == num_batches:
                    raise KeyboardInterrupt
                yield batch

        def counted(*arguments: Any) -> Iterator[pa.RecordBatch]:
            for batch in encode(*arguments):
                counts.append(len(batch))
                yield batch

        monkeypatch.setattr(prepare_module, "encode_in_order", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(tiny, tmp_path, stream=stream))
        monkeypatch.setattr(prepare_module, "encode_in_order", counted)
        assert prepare(config(tiny, tmp_path, stream=stream)).files == files_of(tiny.data)
        assert sum(counts) == 60 - num_batches // 2 * 10

    def test_while_writing(self, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        finish = windows_module.WindowWriter.finish

        def interrupted(writer: windows_module.WindowWriter) -> dict[str, int]:
            finish(writer)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(windows_module.WindowWriter, "finish", interrupted)
            with pytest.raises(KeyboardInterrupt):
                prepare(config(tiny, tmp_path))
        monkeypatch.delattr(prepare_module, "encode_in_order")
        (tokenizer,) = tmp_path.glob(".work/*/tokenizer/tokenizer.json")
        tokenizer.write_text(tokenizer.read_text(encoding="utf-8").replace('"a"', '"A"', 1), encoding="utf-8")
        assert prepare(config(tiny, tmp_path)).fingerprint == TokenDataset(tiny.data).fingerprint

    @pytest.mark.parametrize("damage", ["flipped", "deleted"])
    def test_damaged_while_it_lay_there(
        self, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        monkeypatch.setattr(tokenizing, "DOCUMENTS_PER_BATCH", 10)
        monkeypatch.setattr(document_pile, "BATCHES_PER_FILE", 2)
        with monkeypatch.context() as patch:
            patch.setattr(windows_module.WindowWriter, "finish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                prepare(config(tiny, tmp_path))
        (*_, last) = sorted((tmp_path / ".work").rglob("0000*.arrow"))
        content = bytearray(last.read_bytes())
        content[len(content) // 2] ^= 1
        last.write_bytes(content)
        if damage == "deleted":
            last.unlink()
        assert prepare(config(tiny, tmp_path)).files == files_of(tiny.data)

    def test_what_it_left_is_not_taken_for_other_settings(
        self, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def nothing(*_: Any) -> Iterable[pa.RecordBatch]:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(prepare_module, "encode_in_order", nothing)
            with pytest.raises(KeyboardInterrupt):
                prepare(config(tiny, tmp_path, seed=3))
        assert prepare(config(tiny, tmp_path)).fingerprint == TokenDataset(tiny.data).fingerprint
        assert not (tmp_path / ".work").exists()

    def test_a_resumed_limit_is_the_same_limit(
        self, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tokenizing, "DOCUMENTS_PER_BATCH", 3)
        monkeypatch.setattr(document_pile, "BATCHES_PER_FILE", 1)
        undisturbed = prepare(config(tiny, tmp_path / "a", max_tokens=4000))
        with monkeypatch.context() as patch:
            patch.setattr(document_pile.DocumentPile, "is_complete", property(lambda _: 1 / 0))
            with pytest.raises(ZeroDivisionError):
                prepare(config(tiny, tmp_path / "b", max_tokens=4000))
        assert prepare(config(tiny, tmp_path / "b", max_tokens=4000)).fingerprint == undisturbed.fingerprint


@pytest.mark.parametrize("separator", ["\n\n", "\n", ""])
def test_any_single_document_is_cut_so_that_there_is_something_to_hold_out(tmp_path: Path, separator: str) -> None:
    (tmp_path / "book.txt").write_text(separator.join(f"sentence{i} more words" for i in range(1000)))
    made = prepare(PrepareConfig(tmp_path / "data", (tmp_path / "book.txt",), vocab_size=280, context_length=16))
    train, validation = (made.facts["splits"][split] for split in SPLITS)
    assert train["num_documents"] >= 50
    assert validation["num_windows"] > 0
    assert train["num_bytes"] > 5 * validation["num_bytes"]


@both
def test_copies_are_counted_and_can_be_dropped(tiny: Tiny, tmp_path: Path, stream: bool) -> None:
    lines = tiny.corpus.read_text().splitlines()
    (tmp_path / "text.jsonl").write_text("\n".join([*lines, *lines[:7], lines[0]]))
    settings: dict[str, Any] = {"text": (tmp_path / "text.jsonl",), "stream": stream}
    kept = prepare(config(tiny, tmp_path / "kept", **settings))
    dropped = prepare(config(tiny, tmp_path / "dropped", **settings, drop_duplicates=True))
    assert kept.facts["num_duplicates"] == dropped.facts["num_duplicates"] == 8
    assert (total(kept), total(dropped)) == (68, 60)
    train, validation = (set(texts_of(tmp_path / "kept", split)) for split in SPLITS)
    assert not train & validation


@both
def test_only_so_many_tokens_or_bytes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(tokenizing, "DOCUMENTS_PER_BATCH", 5)
    tokens = prepare(config(tiny, tmp_path / "tokens", stream=stream, max_tokens=4000))
    assert tokens.facts["splits"]["train"]["num_windows"] == 4000 // 16
    assert total(tokens) < 60
    some = prepare(config(tiny, tmp_path / "bytes", stream=stream, max_bytes=20_000))
    assert 19_990 < total(some, "num_bytes") <= 20_000
    with pytest.raises(CocomixError, match=r"max_tokens is 5, .*128"):
        PrepareConfig(tmp_path, max_tokens=5)


@both
def test_validation_text_is_the_validation_split_whole(tiny: Tiny, tmp_path: Path, stream: bool) -> None:
    held_out = write_corpus(tmp_path / "held_out.jsonl", num_documents=3, seed=7)
    made = prepare(config(tiny, tmp_path / "data", validation_text=(held_out,), stream=stream))
    assert [made.facts["splits"][split]["num_documents"] for split in SPLITS] == [60, 3]
    assert made.fingerprint != TokenDataset(tiny.data).fingerprint
    with pytest.raises(CocomixError, match=r"--validation-text shares 60 documents"):
        prepare(config(tiny, tmp_path / "shared", validation_text=(tiny.corpus,), stream=stream))
    assert not (tmp_path / "shared").exists()


@both
def test_a_refusal_leaves_nothing_in_the_way_of_a_retry(tiny: Tiny, tmp_path: Path, stream: bool) -> None:
    output, text = tmp_path / "data", tmp_path / "text.jsonl"
    good = tiny.corpus.read_text()
    text.write_text(good + '{"text": 3}\n')
    with pytest.raises(CocomixError, match=r"text.jsonl, line 61"):
        prepare(config(tiny, output, text=(text,), stream=stream))
    text.write_text(good + "[" * 100_000)
    with pytest.raises(CocomixError, match=r"text.jsonl, line 61"):
        prepare(config(tiny, output, text=(text,), stream=stream))
    assert not output.exists()
    text.write_text(good)
    for settings, message in (
        ({"context_length": 50_000}, "less than one window of 50000"),
        ({"validation_fraction": 1e-9}, "the validation text has 0 tokens"),
        ({"vocab_size": 200}, "at least 257"),
    ):
        with pytest.raises(CocomixError, match=message):
            prepare(config(tiny, output, text=(text,), stream=stream, **settings))
        assert not output.exists()
    assert prepare(config(tiny, output, text=(text,), stream=stream)).files == files_of(tiny.data)


def test_bad_input_is_one_sentence(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(CocomixError, match=r"empty.txt: every document is empty"):
        prepare(config(tiny, tmp_path / "a", text=(tmp_path / "empty.txt",)))
    with pytest.raises(CocomixError, match="--text names no file"):
        prepare(config(tiny, tmp_path / "a", text=()))
    for settings in ({"context_length": 1}, {"seed": -3}, {"validation_fraction": 1.5}, {"max_bytes": 0}):
        ((name, value),) = settings.items()
        with pytest.raises(CocomixError, match=f"{name} is {value}"):
            config(tiny, tmp_path, **settings)


@both
def test_an_end_of_sequence_stands_at_the_end_of_documents_alone(tiny: Tiny, tmp_path: Path, stream: bool) -> None:
    texts = [json.loads(line)["text"] + f" <|endoftext|> {i}" for i, line in enumerate(tiny.corpus.open())]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, texts)))
    settings: dict[str, Any] = {"text": (tmp_path / "text.jsonl",), "stream": stream, "isolate_documents": True}
    for old_way in (False, True):
        output = tmp_path / str(old_way)
        made = prepare(config(tiny, output, special_tokens_in_text=old_way, **settings))
        assert made.settings.get("special_tokens_in_text", False) == old_way
        data = TokenDataset(output)
        windows = range(data.num_windows)
        ids = data.input_ids(windows).flatten()
        assert "<|endoftext|> 1" in data.tokenizer().decode(ids)
        ends = ids == data.eos_token_id
        owners = data.document_ids(windows).flatten()
        num_in_documents = int(ends.sum()) - int((owners[1:] != owners[:-1]).sum())
        assert (num_in_documents > 40) == old_way
        assert num_in_documents >= 40 or num_in_documents in (0, 1)  # the last document may end with the last window


def test_the_same_text_in_every_format_gives_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    texts = [json.loads(line)["text"].replace("\n", "\r\n") + "\r" for line in tiny.corpus.open()]
    folders = {name: tmp_path / name for name in ("txt", "gz", "jsonl", "json", "csv", "parquet", "plain")}
    streamed = ("gz", "jsonl", "csv")
    for folder in folders.values():
        folder.mkdir()
    for number, text in enumerate(texts):
        (folders["txt"] / f"{number}.txt").write_bytes(text.encode())
        (folders["gz"] / f"{number}.txt.gz").write_bytes(gzip.compress(text.encode()))
        (folders["plain"] / f"{number}.txt").write_text(text.replace("\r\n", "\n").replace("\r", "\n"), newline="\n")
    rows = [{"text": text} for text in texts]
    (folders["jsonl"] / "a.jsonl").write_text("\r\n".join(map(json.dumps, rows)), newline="")
    (folders["json"] / "a.json").write_text(json.dumps(rows))
    with (folders["csv"] / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    pq.write_table(pa.Table.from_pylist(rows), folders["parquet"] / "a.parquet")
    tokenizer = str(tiny.data / "tokenizer")
    found = [
        prepare(
            config(tiny, tmp_path / f"{name}-data", text=(folder,), tokenizer=tokenizer, stream=name in streamed)
        ).files
        for name, folder in folders.items()
    ]
    assert all(files == found[0] for files in found)


def test_what_was_left_out_is_counted_whatever_happened_on_the_way(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streaming, an interruption, workers that are ahead, or an end of the reading before the source's."""
    monkeypatch.setattr(tokenizing, "DOCUMENTS_PER_BATCH", 3)
    monkeypatch.setattr(document_pile, "BATCHES_PER_FILE", 2)
    lines = tiny.corpus.read_text().splitlines()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jsonl").write_text("\n".join(f'{line}\n{{"text": null}}\n{{oops' for line in lines))
    (tmp_path / "text" / ".b.txt").write_text("hidden")
    settings: dict[str, Any] = {
        "text": (tmp_path / "text",),
        "tokenizer": str(tiny.data / "tokenizer"),
        "on_error": "skip",
        "stream": True,
    }
    whole = prepare(config(tiny, tmp_path / "whole", **settings | {"stream": False}))
    assert [whole.facts[name] for name in ("num_without_text", "num_unreadable", "num_hidden")] == [60, 60, 1]
    assert whole.settings["on_error"] == "skip"
    part = prepare(config(tiny, tmp_path / "part", max_tokens=4000, **settings))
    assert 0 < part.facts["num_without_text"] < 60
    encode = prepare_module.encode_in_order

    def ahead(encoder: Any, batches: Iterable[Any], num_workers: int) -> Iterator[pa.RecordBatch]:
        return encode(encoder, list(batches), num_workers)

    def interrupted(*arguments: Any) -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(encode(*arguments)):
            if number == 4:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(prepare_module, "encode_in_order", ahead)
    assert prepare(config(tiny, tmp_path / "ahead", max_tokens=4000, **settings)).facts == part.facts
    for expected, limit in ((whole, None), (part, 4000)):
        output = tmp_path / f"again-{limit}"
        monkeypatch.setattr(prepare_module, "encode_in_order", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(tiny, output, max_tokens=limit, **settings))
        monkeypatch.setattr(prepare_module, "encode_in_order", encode)
        assert prepare(config(tiny, output, max_tokens=limit, **settings)).facts == expected.facts


def test_files_alone_have_suffixes_and_errors_to_skip(tmp_path: Path) -> None:
    for settings in ({"suffix": (".py",)}, {"on_error": "skip"}):
        with pytest.raises(CocomixError, match=r"--suffix and --on-error .*--text"):
            PrepareConfig(tmp_path, dataset="x", **settings)  # type: ignore[arg-type]
