"""`cocomix bench` at its smallest size: every case runs, and refuses where the fast path computes something else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cocomix import CocomixError, ConceptExtractor
from cocomix.base.artifacts import write_json
from cocomix.cli.main import main
from cocomix.mixers import concept as mixers
from cocomix.sae import gradient as sae_gradient
from cocomix.tools.bench import command, dense, extract, extract_ranks, generate, head, sae, startup, train
from cocomix.tools.bench.command import BenchConfig, bench, sections
from tests.modeling.helpers import student, tokens

CASES = ("train", "head", "extract", "generate", "sae")


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes take seconds to start; they have tests of their own."""

    def peaks(_case: str, works: Sequence[object]) -> list[int]:
        return [2**20] * len(works)

    for case in (train, head, extract):
        monkeypatch.setattr(case, "peak_bytes", peaks)
    monkeypatch.setattr(extract, "time_ranks", lambda *_: {"one": [2.0], "two": [1.0]})
    monkeypatch.setattr(extract, "num_usable_cores", lambda: 2)
    spread = {"median": 0.1, "low": 0.1, "high": 0.1}
    monkeypatch.setattr(startup, "measure", lambda: {"cpu_seconds": dict.fromkeys(startup.NAMES, spread)})


@pytest.mark.usefixtures("no_processes")
def test_all_cases_are_measured_written_and_shown(tmp_path: Path) -> None:
    file = tmp_path / "new" / "bench.json"
    text = bench(BenchConfig(size="smoke", repetitions=2, json=file))
    result = json.loads(file.read_text(encoding="utf-8"))
    assert set(result["cases"]) == set(CASES)
    assert result["command"] == f"cocomix bench --size smoke --repetitions 2 --json {file}"
    assert {"torch", "transformers", "cocomix", "python"} <= set(result["versions"])
    assert set(result["machine"]) == {"processor", "cores", "threads"}
    for case in result["cases"].values():
        assert case["shape"]["repetitions"] == 2
    # What is stored says all that was shown.
    assert text == "\n\n".join([command.heading(result), *(section.as_text() for section in sections(result))])
    assert "**2.00 (2.00 to 2.00)** times as fast as one" in text


@pytest.mark.usefixtures("no_processes")
def test_some_cases_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--case", "head", "generate", "--size", "smoke"]) == 0
    shown = capsys.readouterr().out
    assert "Generation" in shown
    assert "Training" not in shown
    assert "Start-up" not in shown


def _break(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case in ("train", "head"):
        compress = mixers.compress_concepts
        monkeypatch.setattr(mixers, "compress_concepts", lambda *words: compress(*words) * 1.001)
    elif case == "extract":
        label = ConceptExtractor.__call__
        monkeypatch.setattr(ConceptExtractor, "__call__", lambda *words: label(*words).roll(1, 1))
    elif case == "sae":
        backward = sae_gradient._Chosen.backward

        def wrong(*words: Any) -> tuple[Tensor | None, ...]:
            *others, weight, bias = backward(*words)
            assert weight is not None
            return (*others, weight * 1.001, bias)

        monkeypatch.setattr(sae_gradient._Chosen, "backward", staticmethod(wrong))
    else:
        grow = generate.Sequence.grow

        def other_token(self: generate.Sequence) -> None:
            grow(self)
            if self.use_cache:
                self.ids = torch.cat([self.ids[:, :-1], (self.ids[:, -1:] + 1) % 50], dim=1)

        monkeypatch.setattr(generate.Sequence, "grow", other_token)


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_fast_path_is_refused_with_one_sentence(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _break(case, monkeypatch)
    assert main(["bench", "--case", case, "--size", "smoke", "--json", str(tmp_path / "bench.json")]) == 1
    said = capsys.readouterr()
    assert "nothing is reported" in said.err.splitlines()[-1]
    assert not said.out
    assert not (tmp_path / "bench.json").exists()


@pytest.mark.usefixtures("no_processes")
def test_other_concepts_on_every_batch_are_no_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    predict = mixers.predict_concepts

    def other(*words: Any) -> tuple[Tensor, Tensor, Tensor]:
        values, indices, losses = predict(*words)
        return values, (indices + 1) % 64, losses

    monkeypatch.setattr(mixers, "predict_concepts", other)
    with pytest.raises(CocomixError, match="on each of 8 batches it chose other concepts"):
        train.measure(train.SIZES["smoke"])


def test_wrong_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--case", "other"])
    with pytest.raises(CocomixError, match="threads is 0"):
        BenchConfig(threads=0)
    with pytest.raises(CocomixError, match="is a folder; --json takes the name of a file"):
        bench(BenchConfig(json=tmp_path))


def test_the_dense_student_computes_what_the_student_does() -> None:
    model = student("gpt2", "concept", "interleave").train()
    ids = tokens(2, 7)
    labels = torch.randint(model.config.num_concepts, (2, 7, 3))
    labels[0, 2, 1] = labels[:, -1, 0] = -100
    copied = dense.DenseStudent(model)
    out, expected = model(input_ids=ids, labels=ids, concept_labels=labels), copied(ids, labels)
    torch.testing.assert_close(out.loss, expected.loss)
    assert torch.equal(out.concept_indices, expected.concept_indices)
    out.loss.backward()
    expected.loss.backward()
    gradients = {name.removeprefix("model."): p.grad for name, p in copied.named_parameters()}
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


@pytest.mark.parametrize("case", [train, head, extract])
def test_the_work_whose_memory_is_measured_runs(case: Any) -> None:
    for variant in ("fast", "dense", "ntp") if case is train else ("fast", "dense"):
        assert case.work(variant, case.SIZES["smoke"])() >= 0


def test_ranks_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shape = extract_ranks.RanksShape(num_windows=4, windows_per_shard=2, repetitions=1)

    def in_this_process(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if "torch.distributed.run" in words:
            return subprocess.CompletedProcess(words, 1, "", "Traceback\nOSError: no second process")
        extract_ranks.main(words[words.index("cocomix.tools.bench.extract_ranks") + 1 :])
        return subprocess.CompletedProcess(words, 0, capsys.readouterr().out, "")

    monkeypatch.setattr(subprocess, "run", in_this_process)
    with pytest.raises(CocomixError, match=r"by two process.* could not be measured: OSError: no second process"):
        extract_ranks.time_ranks(tmp_path, shape)
    assert (tmp_path / "labels-one-0" / "manifest.json").exists()


@pytest.mark.slow
def test_two_ranks_share_the_windows(tmp_path: Path) -> None:
    shape = extract_ranks.RanksShape(num_windows=4, windows_per_shard=2, repetitions=1)
    assert set(extract_ranks.time_ranks(tmp_path, shape)) == {"one", "two"}
    files = [(tmp_path / f"labels-{name}-0" / "00000.parquet").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


SPARSIFY = """
import torch
from types import SimpleNamespace

class SparseCoderConfig:
    def __init__(self, num_latents, k):
        self.num_latents, self.k = num_latents, k

class SparseCoder(torch.nn.Linear):
    def __init__(self, width, config):
        super().__init__(width, config.num_latents)
    def forward(self, x, y, dead_mask, total_variance):
        z = super().forward(x)
        return SimpleNamespace(latent_indices=z.topk(2).indices, fvu=z.sum() / total_variance, multi_topk_fvu=z.new_zeros(()))
    def set_decoder_norm_to_unit_norm(self): pass
    def remove_gradient_parallel_to_decoder_directions(self): pass
"""


def test_sparsify_is_compared_with_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sparsify.py").write_text(SPARSIFY, encoding="utf-8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sparsify.py").write_text("another library", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "other")
    assert "`pip install eai-sparsify`" in sae.describe(sae.measure(sae.SIZES["smoke"])).text
    metadata = tmp_path / "eai_sparsify-1.2.3.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: eai-sparsify\nVersion: 1.2.3\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    result = sae.measure(sae.SIZES["smoke"])
    assert result["sparsify_version"] == "1.2.3"
    assert result["shape"] == asdict(sae.SIZES["smoke"])
    section = sae.describe(result)
    assert [row[0] for row in section.rows] == ["`cocomix train-sae`", "dense formulation", "eai-sparsify 1.2.3"]
    write_json(tmp_path / "result.json", result)  # a whole result can be stored
