"""`cocomix bench` at its smallest size: every case runs, and refuses where the fast path computes something else."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cocomix import CocomixError, ConceptExtractor
from cocomix.cli.main import main
from cocomix.mixers import concept as mixers
from cocomix.sae import chosen
from cocomix.tools.bench import command, dense, extract, extract_ranks, generate, head, sae, train
from cocomix.tools.bench.command import bench, sections
from cocomix.tools.bench.config import BenchConfig, CaseName
from tests.modeling.helpers import student, tokens

CASES = ("train", "head", "extract", "generate", "sae")


def spreads(value: Any) -> Iterator[dict[str, float]]:
    """Every median with its quartiles, wherever it stands in a result."""
    if isinstance(value, dict) and value.keys() == {"median", "low", "high"}:
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from spreads(part)


def measured(tmp_path: Path, case: tuple[CaseName, ...]) -> dict[str, Any]:
    """The stored result of a run, which says all that was shown."""
    file = tmp_path / "new" / "bench.json"
    text = bench(BenchConfig(case, size="smoke", repetitions=2, json=file))
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert text == "\n\n".join([command.heading(result), *(section.as_text() for section in sections(result))])
    assert result["command"].endswith(f"--size smoke --repetitions 2 --json {file}")
    assert {"torch", "transformers", "cocomix", "python"} <= set(result["versions"])
    assert set(result["machine"]) == {"processor", "cores", "threads"}
    for found in result["cases"].values():
        assert found["shape"]["repetitions"] == 2
        assert list(spreads(found))
    assert all(0 < spread["low"] <= spread["median"] <= spread["high"] for spread in spreads(result))
    return result


def test_some_cases_alone(tmp_path: Path) -> None:
    result = measured(tmp_path, ("generate", "sae"))
    assert result["cases"].keys() == {"generate", "sae"}
    assert "startup" not in result
    assert "--case generate sae" in result["command"]


@pytest.mark.slow
def test_all_cases_and_start_up(tmp_path: Path) -> None:
    """With the processes in which memory, ranks and start-up are measured."""
    result = measured(tmp_path, ())
    assert result["cases"].keys() == set(CASES)
    assert result["startup"]
    # Work this small fits into memory that its process holds already; test_measuring checks a peak's value.
    cases = result["cases"]
    assert cases["train"]["peak_bytes"].keys() == {"fast", "dense", "ntp"}
    for row in (cases["extract"], *cases["head"]["rows"][:-1]):
        assert row["peak_bytes"].keys() == {"fast", "dense"}
    assert cases["head"]["rows"][-1]["peak_bytes"].keys() == {"fast"}


def _break(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case in ("train", "head"):
        compress = mixers.compress_concepts
        monkeypatch.setattr(mixers, "compress_concepts", lambda *words: compress(*words) * 1.001)
    elif case == "extract":
        label = ConceptExtractor.__call__
        monkeypatch.setattr(ConceptExtractor, "__call__", lambda *words: label(*words).roll(1, 1))
    elif case == "sae":
        backward = chosen._Chosen.backward

        def wrong(*words: Any) -> tuple[Tensor | None, ...]:
            *others, weight, bias = backward(*words)
            assert weight is not None
            return (*others, weight * 1.001, bias)

        monkeypatch.setattr(chosen._Chosen, "backward", staticmethod(wrong))
    else:
        grow = generate.Sequence.grow

        def other_token(self: generate.Sequence) -> None:
            grow(self)
            if self.use_cache:
                self.ids = torch.cat([self.ids[:, :-1], (self.ids[:, -1:] + 1) % 50], dim=1)

        monkeypatch.setattr(generate.Sequence, "grow", other_token)


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


def test_other_concepts_on_every_batch_are_no_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    predict = mixers.predict_concepts

    def other(*words: Any) -> tuple[Tensor, Tensor, Tensor]:
        values, indices, losses = predict(*words)
        return values, (indices + 1) % 64, losses

    monkeypatch.setattr(mixers, "predict_concepts", other)
    with pytest.raises(CocomixError, match=r"\b8\b.*concepts"):
        train.measure(train.SIZES["smoke"])


def test_wrong_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--case", "other"])
    with pytest.raises(CocomixError, match=r"threads.*0"):
        BenchConfig(threads=0)
    with pytest.raises(CocomixError, match="--json"):
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


def test_a_process_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    shape = extract_ranks.RanksShape(num_windows=4, windows_per_shard=2, repetitions=1)
    with pytest.raises(CocomixError, match=r"one process.*1"):
        extract_ranks.time_ranks(tmp_path, shape)


@pytest.mark.slow
def test_two_ranks_share_the_windows(tmp_path: Path) -> None:
    shape = extract_ranks.RanksShape(num_windows=4, windows_per_shard=2, repetitions=1)
    assert set(extract_ranks.time_ranks(tmp_path, shape)) == {"one", "two"}
    files = [(tmp_path / f"labels-{name}-0" / "00000.parquet").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_without_sparsify_nothing_is_said_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sae, "DISTRIBUTION", "no-such-distribution")
    result = sae.measure(sae.SIZES["smoke"])
    assert result["sparsify_version"] is None
    section = sae.describe(result)
    assert "pip install no-such-distribution" in section.text
    assert [row[0] for row in section.rows] == ["`cocomix train-sae`", "dense formulation"]


@pytest.mark.slow
def test_sparsify_is_compared_with() -> None:
    try:
        version = importlib.metadata.version(sae.DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the package {sae.DISTRIBUTION}")
    result = sae.measure(sae.SIZES["smoke"])
    assert result["sparsify_version"] == version
    assert sae.describe(result).rows[-1][0] == f"{sae.DISTRIBUTION} {version}"
    assert result["sparsify_over_fast"]["median"] > 0
