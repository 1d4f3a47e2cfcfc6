"""Windows in a pass of the teacher: chosen from memory, kept by the folder, and without an effect on labels."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import pytest

from cocomix import AttributionConfig, ConceptDataset, DistillTargetsConfig, ExtractConfig, TokenDataset
from cocomix.base.artifacts import read_header
from cocomix.base.ledger import Ledger
from cocomix.labels import distillation_targets, extract, passes
from cocomix.labels.live import TeacherLabels
from tests.conftest import Tiny


def with_memory(num_bytes: int) -> AbstractContextManager[object]:
    return mock.patch.object(passes, "memory_bytes", return_value=num_bytes)


def labelled(tiny: Tiny, output: Path, criterion: str, **settings: object) -> int:
    """Label half of the windows; returns the number of them in a pass."""
    attribution = AttributionConfig(criterion)  # type: ignore[arg-type]
    sources = {"teacher": tiny.teacher, "sae": tiny.sae, "data": tiny.data, "attribution": attribution}
    extract.extract(ExtractConfig(output=output, num_windows=64, **sources | settings))  # type: ignore[arg-type]
    return int(read_header(output)["settings"]["batch_size"])


@pytest.mark.parametrize("criterion", ["activation_value", "attribution"])
def test_labels_do_not_depend_on_the_memory(tiny: Tiny, tmp_path: Path, criterion: str) -> None:
    found, tokens = {}, TokenDataset(tiny.data)
    for num_bytes in (10**5, 10**6, 10**7, 10**12):
        with with_memory(num_bytes):
            windows = labelled(tiny, tmp_path / f"{num_bytes}", criterion)
        found[windows] = ConceptDataset(tmp_path / f"{num_bytes}", tokens).labels(range(64))
    assert min(found) == 1
    assert max(found) == passes.MAX_TOKENS_ON_CPU // 16
    assert len(found) > 2
    for labels in found.values():
        # Another size may round differently, and so swap two scores that nearly tie.
        assert (labels == found[1]).float().mean() > 0.999


def test_a_begun_folder_keeps_its_windows_in_a_pass(tiny: Tiny, tmp_path: Path) -> None:
    assert labelled(tiny, tmp_path / "labels", "attribution", batch_size=4) == 4
    manifest = (tmp_path / "labels" / "manifest.json").read_bytes()
    assert labelled(tiny, tmp_path / "labels", "attribution") == 4
    assert (tmp_path / "labels" / "manifest.json").read_bytes() == manifest
    with with_memory(1):
        assert labelled(tiny, tmp_path / "labels", "attribution", overwrite=True) == 1
        targets = DistillTargetsConfig(teacher=tiny.teacher, data=tiny.data, output=tmp_path / "targets", num_windows=8)
        distillation_targets.distill_targets(targets)
    assert read_header(tmp_path / "targets")["settings"]["batch_size"] == 1


def test_a_pass_takes_the_bytes_that_are_counted(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """By the peak of real passes of the same windows."""
    tokens, attribution = TokenDataset(tiny.data), AttributionConfig("attribution")
    source = TeacherLabels(tokens, tiny.teacher, tiny.sae, None, attribution)
    peaks = []
    for num_windows in (4, 8):
        ids = tokens.input_ids(range(num_windows))
        with Ledger() as ledger:
            source.extractor.scored(ids)
        peaks.append(ledger.peak_excluding())
    each = (peaks[1] - peaks[0]) / 4
    for share in (3.0, 5.0):  # of a pass of four windows, with a quarter of the memory
        with with_memory(int(4 * share * each)):
            assert source.windows_that_fit() == (2 if share == 3 else 4)
    assert "4 windows in a pass of the teacher" in capsys.readouterr().err
