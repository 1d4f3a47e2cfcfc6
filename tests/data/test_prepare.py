"""Text to windows: whole, split by document, reproducible, and clear about what it can't do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cocomix import CocomixError, PrepareConfig, TokenDataset, prepare
from cocomix.data import tokenizing
from cocomix.data import windows as windows_module
from tests.conftest import Tiny, write_corpus


def config(tiny: Tiny, output: Path, **settings: object) -> PrepareConfig:
    shared: dict[str, object] = {
        "text": (tiny.corpus,),
        "vocab_size": 300,
        "context_length": 16,
        "validation_fraction": 0.2,
    }
    return PrepareConfig(output=output, **shared | settings)  # type: ignore[arg-type]


def test_windows_hold_the_text_in_order_with_documents_ended(tiny: Tiny) -> None:
    data = TokenDataset(tiny.data, "train")
    ids = data.input_ids(range(data.num_windows))
    assert ids.shape == (data.num_windows, 16)
    text = data.tokenizer().decode(ids.flatten(), skip_special_tokens=False)
    assert "naïve text ☕" in text
    owners = data.document_ids(range(data.num_windows)).flatten()
    ends = (ids.flatten() == data.eos_token_id).nonzero().flatten()
    # A document's number changes right behind its end-of-sequence token, and nowhere else.
    changes = (owners[1:] != owners[:-1]).nonzero().flatten()
    assert set(changes.tolist()) == set(ends.tolist()) - {len(owners) - 1}


def test_splits_share_no_document(tiny: Tiny) -> None:
    texts = []
    for split in ("train", "validation"):
        data = TokenDataset(tiny.data, split)  # type: ignore[arg-type]
        text = data.tokenizer().decode(data.input_ids(range(data.num_windows)).flatten())
        texts.append({line.split(":")[0] for line in text.split("# document ")[1:]})
    assert texts[0]
    assert texts[1]
    assert not texts[0] & texts[1]


def test_equal_settings_give_equal_bytes_and_are_recognised(tiny: Tiny, tmp_path: Path) -> None:
    first = TokenDataset(tiny.data).fingerprint
    assert prepare(config(tiny, tmp_path)).fingerprint == first
    assert prepare(config(tiny, tmp_path)).fingerprint == first
    with pytest.raises(CocomixError, match="context_length: 16 there, 8 now"):
        prepare(config(tiny, tmp_path, context_length=8))
    assert prepare(config(tiny, tmp_path, context_length=8, overwrite=True)).fingerprint != first


def test_shards_join_to_the_same_windows(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "WINDOWS_PER_SHARD", 7)
    monkeypatch.setattr(tokenizing, "DOCUMENTS_PER_BATCH", 5)
    prepare(config(tiny, tmp_path))
    whole, parts = TokenDataset(tiny.data), TokenDataset(tmp_path)
    assert len(list((tmp_path / "train").glob("*.parquet"))) > 10
    assert parts.num_windows == whole.num_windows
    windows = np.arange(whole.num_windows)
    assert (parts.input_ids(windows) == whole.input_ids(windows)).all()


def test_a_tokenizer_can_be_given(tiny: Tiny, tmp_path: Path) -> None:
    prepare(config(tiny, tmp_path, tokenizer=str(tiny.data / "tokenizer")))
    assert (TokenDataset(tmp_path).input_ids([0]) == TokenDataset(tiny.data).input_ids([0])).all()
    with pytest.raises(CocomixError, match=r"^--tokenizer: no tokenizer could be loaded from .*: nothing is there"):
        prepare(config(tiny, tmp_path / "x", tokenizer=str(tmp_path / "nothing")))


def test_one_document_is_cut_so_that_there_is_something_to_hold_out(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(f"paragraph {i} " * 20 for i in range(100)))
    facts = prepare(PrepareConfig(tmp_path / "data", (tmp_path / "book.txt",), vocab_size=280, context_length=16)).facts
    assert facts["splits"]["train"]["num_documents"] >= 20
    assert facts["splits"]["validation"]["num_windows"] > 0


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ", ""])
def test_any_single_file_is_cut_somewhere(tmp_path: Path, separator: str) -> None:
    (tmp_path / "book.txt").write_text(separator.join(f"sentence{i} more words" for i in range(1000)))
    facts = prepare(PrepareConfig(tmp_path / "data", (tmp_path / "book.txt",), vocab_size=280, context_length=16)).facts
    assert facts["splits"]["validation"]["num_windows"] > 0
    assert facts["splits"]["train"]["num_bytes"] > 5 * facts["splits"]["validation"]["num_bytes"]


def test_one_long_document_among_short_ones_does_not_become_the_validation_split(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for i in range(24):
        (text / f"{i}.txt").write_text(f"a short note, number {i}. " * 20)
    (text / "long.txt").write_text("a long book. " * 40_000)
    for seed in range(4):
        config = PrepareConfig(tmp_path / f"data{seed}", (text,), vocab_size=280, context_length=16, seed=seed)
        facts = prepare(config).facts
        assert facts["splits"]["train"]["num_bytes"] > 400_000


def test_a_sample_of_a_larger_corpus(tiny: Tiny, tmp_path: Path) -> None:
    facts = prepare(config(tiny, tmp_path, max_bytes=20_000)).facts
    total = sum(counts["num_bytes"] for counts in facts["splits"].values())
    assert 19_000 < total <= 20_000


@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_leaves_nothing_in_the_way_of_a_retry(tiny: Tiny, tmp_path: Path, stream: bool) -> None:
    output = tmp_path / "data"
    with pytest.raises(CocomixError, match="less than one window of 50000"):
        prepare(config(tiny, output, context_length=50_000, stream=stream))
    assert not output.exists()
    assert prepare(config(tiny, output, stream=stream)).facts["context_length"] == 16


def test_bad_input_is_one_sentence(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(CocomixError, match="every document is empty"):
        prepare(config(tiny, tmp_path / "a", text=(tmp_path / "empty.txt",)))
    write_corpus(tmp_path / "short.jsonl", num_documents=1)
    with pytest.raises(CocomixError, match="--text names no file"):
        prepare(config(tiny, tmp_path / "a", text=()))
    with pytest.raises(CocomixError, match="less than one window of 4096"):
        prepare(config(tiny, tmp_path / "b", text=(tmp_path / "short.jsonl",), context_length=4096))
    with pytest.raises(CocomixError, match="needs at least 257"):
        prepare(config(tiny, tmp_path / "c", vocab_size=200))
    with pytest.raises(CocomixError, match="context_length is 1; it must be at least 2"):
        config(tiny, tmp_path, context_length=1)
    with pytest.raises(CocomixError, match="seed is -3; it must be at least 0"):
        config(tiny, tmp_path, seed=-3)
    with pytest.raises(CocomixError, match="must lie between 0 and 1"):
        config(tiny, tmp_path, validation_fraction=1.5)


def test_validation_text_is_the_validation_split_whole(tiny: Tiny, tmp_path: Path) -> None:
    held_out = write_corpus(tmp_path / "held_out.jsonl", num_documents=3, seed=7)
    manifest = prepare(config(tiny, tmp_path / "data", validation_text=(held_out,)))
    alone = prepare(config(tiny, tmp_path / "alone", validation_fraction=0.2))
    assert manifest.facts["splits"]["validation"]["num_documents"] == 3
    counts = [alone.facts["splits"][split]["num_documents"] for split in ("train", "validation")]
    assert manifest.facts["splits"]["train"]["num_documents"] == sum(counts)
    assert manifest.fingerprint != alone.fingerprint


def test_validation_text_that_is_trained_on_too_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match="60 documents of --validation-text are in the training text too"):
        prepare(config(tiny, tmp_path / "data", validation_text=(tiny.corpus,)))
    assert not (tmp_path / "data").exists()
    with pytest.raises(CocomixError, match="do not go together"):
        config(tiny, tmp_path, validation_text=(tiny.corpus,), stream=True)
