"""Concept datasets: the extractor's labels, the same bytes after an interruption, and only for matching inputs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix import (
    AttributionConfig,
    CocomixError,
    ConceptDataset,
    ExtractConfig,
    PrepareConfig,
    TokenDataset,
    extract,
    prepare,
)
from cocomix.base import artifacts
from cocomix.base.ranks import Ranks
from cocomix.labels import extract as extraction
from cocomix.labels.controls import draw_labels, shuffle_labels
from cocomix.labels.live import TeacherLabels, identify_sae, load_extractor
from tests.conftest import Tiny, write_corpus
from tests.sae.format_files import CASES
from tests.training.helpers import command_on_ranks


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


class KilledError(BaseException):
    """Stands for a kill."""


def test_interrupted_and_continued_gives_the_same_bytes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: dict[str, object] = {"windows_per_shard": 32, "scores": True}
    whole = extract(config(tiny, tmp_path / "whole", **shared))
    write = extraction.write_labels

    def until(folder: Path, index: int, *arguments: Any) -> None:
        write(folder, index, *arguments)
        if index == 3:
            raise KilledError  # between a shard and its receipt

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "write_labels", until)
        with pytest.raises(KilledError):
            extract(config(tiny, tmp_path / "parts", **shared))
    written: list[int] = []

    def count(folder: Path, index: int, *arguments: Any) -> None:
        written.append(index)
        write(folder, index, *arguments)

    # While it lay there, a byte of one shard flipped, and another came from a run with other settings.
    extract(config(tiny, tmp_path / "other", windows_per_shard=32, attribution=AttributionConfig("attribution")))
    for name in ("00002.parquet", ".00002.parquet.json"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "parts" / name)
    flip_a_byte(tmp_path / "parts" / "00000.parquet")
    receipt = tmp_path / "parts" / ".00001.parquet.json"  # its count of labels goes into the facts
    receipt.write_text(receipt.read_text().replace('"num_labelled": ', '"num_labelled": 1'))
    monkeypatch.setattr(extraction, "write_labels", count)
    parts = extract(config(tiny, tmp_path / "parts", **shared))
    assert written == list(range(len(whole.files)))
    assert parts.files == whole.files
    assert parts.facts["share_labelled"] == whole.facts["share_labelled"]
    assert parts.fingerprint == whole.fingerprint
    assert extract(config(tiny, tmp_path / "parts", **shared)).fingerprint == whole.fingerprint


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def command(tiny: Tiny, output: Path) -> list[str]:
    words = ["extract", "--windows-per-shard", "32", "--output", str(output)]
    return [*words, "--teacher", str(tiny.teacher), "--sae", str(tiny.sae), "--data", str(tiny.data)]


def test_two_ranks_write_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    whole = extract(config(tiny, tmp_path / "one", windows_per_shard=32))
    command_on_ranks(2, command(tiny, tmp_path / "two"))
    assert artifacts.read(tmp_path / "two", "concept-dataset").files == whole.files


@pytest.mark.slow
def test_two_processes_of_torchrun_write_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    whole = extract(config(tiny, tmp_path / "one", windows_per_shard=32))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*torchrun, "-m", "cocomix.cli.main", *command(tiny, tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert artifacts.read(tmp_path / "two", "concept-dataset").files == whole.files


def test_a_missing_rank_leaves_no_finished_folder(tiny: Tiny, tmp_path: Path) -> None:
    settings = config(tiny, tmp_path, windows_per_shard=32)
    source = TeacherLabels(TokenDataset(tiny.data), tiny.teacher, tiny.sae, None, AttributionConfig())
    made_with = {"num_windows": 100, "windows_per_shard": 32, "batch_size": 16}
    artifacts.write_json(tmp_path / "settings.json", {"kind": "concept-dataset", "settings": made_with})
    shards = extraction._Shards(settings, source, made_with)
    shards.write_missing(Ranks(1, 2))
    assert sorted(file.name for file in tmp_path.glob("*.parquet")) == ["00001.parquet", "00003.parquet"]
    with pytest.raises(CocomixError, match=r"00000\.parquet"):
        shards.finish()
    assert not (tmp_path / "manifest.json").exists()


def test_scores_are_those_that_ranked_the_labels(tiny: Tiny, tmp_path: Path) -> None:
    tokens = TokenDataset(tiny.data)
    attribution = AttributionConfig("attribution", sign="lowers_loss")
    extract(config(tiny, tmp_path, attribution=attribution, scores=True, num_windows=20))
    concepts = ConceptDataset(tmp_path, tokens)
    expected = load_extractor(tiny.teacher, tiny.sae, attribution).scored(tokens.input_ids(range(16)))
    assert torch.equal(concepts.labels(range(16)), expected.labels)
    assert torch.equal(concepts.scores(range(16)), expected.scores)
    assert (concepts.scores(range(16)).diff(dim=-1) <= 0).all()
    with pytest.raises(CocomixError, match="--scores"):
        ConceptDataset(tiny.concepts, tokens).scores([0])


def test_a_prefix_can_be_labelled(tiny: Tiny, tmp_path: Path) -> None:
    extract(config(tiny, tmp_path, num_windows=16))
    tokens = TokenDataset(tiny.data)
    some, everything = ConceptDataset(tmp_path, tokens), ConceptDataset(tiny.concepts, tokens)
    assert some.num_windows == 16
    assert torch.equal(some.labels(range(16)), everything.labels(range(16)))
    with pytest.raises(CocomixError, match=r"num_windows.*1000000"):
        extract(config(tiny, tmp_path / "x", num_windows=10**6))


def test_a_changed_teacher_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    other = tmp_path / "teacher"
    shutil.copytree(tiny.teacher, other)
    (other / "manifest.json").unlink()
    for name in ("teacher", "sae"):
        with pytest.raises(CocomixError, match=r"teacher .*unfinished"):
            extract(config(tiny, tmp_path / "x", **{name: other}))
    (other / "settings.json").unlink()
    with pytest.raises(CocomixError, match="another teacher"):
        extract(config(tiny, tmp_path / "x", teacher=other))


def foreign(tiny: Tiny, folder: Path) -> Path:
    """The tiny autoencoder without the manifest that says where it comes from."""
    folder.mkdir()
    for name in ("sae.json", "sae.safetensors"):
        shutil.copy(tiny.sae / name, folder / name)
    return folder


def test_a_dictionary_of_another_origin_needs_its_layer(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae, tokens = foreign(tiny, tmp_path / "sae"), TokenDataset(tiny.data)
    with pytest.raises(CocomixError, match="--layer"):
        extract(config(tiny, tmp_path / "x", sae=sae))
    with pytest.raises(CocomixError, match=r"layer 0.*--layer is 1"):
        extract(config(tiny, tmp_path / "x", layer=1))
    with pytest.raises(CocomixError, match="nothing"):
        extract(config(tiny, tmp_path / "x", sae=tmp_path / "nothing", layer=0))
    made = extract(config(tiny, tmp_path / "x", sae=sae, layer=0, num_windows=16))
    assert made.settings["sae"] == artifacts.fingerprint_of_path(sae)
    assert torch.equal(
        ConceptDataset(tmp_path / "x", tokens).labels(range(16)),
        ConceptDataset(tiny.concepts, tokens).labels(range(16)),
    )
    # It fits the teacher as it is, and not with a decoder of another scale.
    assert "warning" not in capsys.readouterr().err
    weights = load_file(sae / "sae.safetensors")
    save_file(weights | {"decoder_weight": 10 * weights["decoder_weight"]}, sae / "sae.safetensors")
    extract(config(tiny, tmp_path / "y", sae=sae, layer=0, num_windows=16))
    assert f"warning: {sae}:" in capsys.readouterr().err
    openai = CASES["openai"]
    file = openai.write(tmp_path, openai.tensors(), openai.settings)
    assert identify_sae(file, 0, tiny.teacher, "")[0] == artifacts.sha256_of_file(file)


class TestVerify:
    """`--verify` names what differs."""

    def run(self, tiny: Tiny, output: Path, **settings: object) -> None:
        verify = {"teacher": None, "sae": None, "verify": True}
        extract(config(tiny, output, **verify | settings))

    def given(self, tiny: Tiny) -> dict[str, object]:
        return {"teacher": tiny.teacher, "sae": tiny.sae}

    def test_a_good_dataset(self, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
        self.run(tiny, tiny.concepts)
        assert str(tiny.concepts) in capsys.readouterr().err
        self.run(tiny, tiny.concepts, **self.given(tiny))
        assert "8,192 of 8,192" in capsys.readouterr().err

    def test_damage_and_shards_of_another_run(self, tiny: Tiny, tmp_path: Path) -> None:
        shutil.copytree(tiny.concepts, tmp_path / "flipped")
        flip_a_byte(tmp_path / "flipped" / "00000.parquet")
        with pytest.raises(CocomixError, match=r"00000\.parquet"):
            self.run(tiny, tmp_path / "flipped")
        extract(config(tiny, tmp_path / "other", attribution=AttributionConfig(num_labels=3)))
        shutil.copy(tiny.concepts / "00000.parquet", tmp_path / "other" / "00000.parquet")
        with pytest.raises(CocomixError, match=r"00000\.parquet has [0-9]+ bytes"):
            self.run(tiny, tmp_path / "other")

    def test_a_teacher_changed_by_one_weight(self, tiny: Tiny, tmp_path: Path) -> None:
        sae, other = foreign(tiny, tmp_path / "sae"), tmp_path / "teacher"
        shutil.copytree(tiny.teacher, other)
        (other / "manifest.json").unlink()
        (other / "settings.json").unlink()
        shared: dict[str, object] = {"sae": sae, "layer": 0, "num_windows": 16}
        extract(config(tiny, tmp_path / "labels", teacher=other, **shared))
        weights = load_file(other / "model.safetensors")
        next(iter(weights.values())).view(-1)[0] += 1e-3
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CocomixError, match="another teacher"):
            self.run(tiny, tmp_path / "labels", teacher=other, **shared)
        with pytest.raises(CocomixError, match=r"\(teacher: "):
            extract(config(tiny, tmp_path / "labels", teacher=other, **shared))

    def test_labels_that_the_inputs_do_not_give(
        self, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = extraction.write_labels

        def wrong(folder: Path, index: int, labels: torch.Tensor, *arguments: Any) -> None:
            labels[20, 3] = labels[20, 3].flip(-1)
            labels[21:25] = labels[21:25].flip(-1)
            write(folder, index, labels, *arguments)

        monkeypatch.setattr(extraction, "write_labels", wrong)
        extract(config(tiny, tmp_path, num_windows=32))
        with pytest.raises(CocomixError, match=r"window 20: [0-9]+ of 512"):
            self.run(tiny, tmp_path, **self.given(tiny))

    def test_a_control_has_no_teacher(self, tiny: Tiny, tmp_path: Path) -> None:
        shuffled = AttributionConfig(control="shuffled")
        extract(ExtractConfig(data=tiny.data, output=tmp_path, labels=tiny.concepts, attribution=shuffled))
        self.run(tiny, tmp_path)
        with pytest.raises(CocomixError, match="control"):
            self.run(tiny, tmp_path, **self.given(tiny))

    def test_the_part_of_the_data_that_differs_is_named(self, tiny: Tiny, tmp_path: Path) -> None:
        def other(name: str, **settings: object) -> Path:
            default = {"text": (tiny.corpus,), "vocab_size": 300, "context_length": 16, "validation_fraction": 0.2}
            prepare(PrepareConfig(output=tmp_path / name, **default | settings))  # type: ignore[arg-type]
            return tmp_path / name

        text = write_corpus(tmp_path / "other.jsonl", seed=1)
        for data, name in (
            (other("a", text=(text,)), "text"),
            (other("b", vocab_size=290), "tokenizer"),
            (other("c", context_length=8), "windows"),
        ):
            with pytest.raises(CocomixError, match=rf"\(the {name} "):
                self.run(tiny, tiny.concepts, data=data)


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
    with pytest.raises(CocomixError, match=r"'shuffled'.*--labels"):
        config(tiny, tmp_path, attribution=shuffled)
    with pytest.raises(CocomixError, match=r"'shuffled'.*--labels"):
        config(tiny, tmp_path, attribution=shuffled, labels=tiny.concepts)
    with pytest.raises(CocomixError, match=r"--teacher and --sae"):
        config(tiny, tmp_path, sae=None)
    with pytest.raises(CocomixError, match=r"--labels.*--attribution\.control"):
        config(tiny, tmp_path, labels=tiny.concepts)


@pytest.mark.slow
@pytest.mark.unchecked_shapes
def test_compiled_blocks_give_the_same_labels_but_for_near_ties(tiny: Tiny, tmp_path: Path) -> None:
    tokens = TokenDataset(tiny.data)
    for name in ("plain", "compiled"):
        extract(config(tiny, tmp_path / name, num_windows=32, compile=name == "compiled"))
    plain, compiled = (ConceptDataset(tmp_path / name, tokens).labels(range(32)) for name in ("plain", "compiled"))
    assert float((plain == compiled).float().mean()) > 0.99
    with pytest.raises(CocomixError, match="compile"):
        extract(config(tiny, tmp_path / "compiled", num_windows=32))
