"""The evidence: cells have names and files, rows come from stored results, and the page holds nothing typed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from benchmarks.evidence import cells as cells_module
from benchmarks.evidence import page, statistics
from benchmarks.evidence.cells import Cell, parse_cell
from benchmarks.evidence.corpora import Places
from benchmarks.evidence.inputs import Inputs
from benchmarks.evidence.run import train_config
from benchmarks.evidence.tables import TABLES

from cocomix import CocomixError


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cells_module, "RESULTS", tmp_path)
    return tmp_path


def store(variant: str, tokens: str, seed: int, **result: Any) -> None:
    cell = Cell("standard_library", "weak", "small", variant, tokens, seed)
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    cell.file.write_text(json.dumps(result))


@pytest.mark.usefixtures("results")
def test_names_and_files_lead_back_to_the_cell() -> None:
    for cell in {cell.key for table in TABLES.values() for cell in table()}:
        assert parse_cell(cell.name) == cell
        cell.file.parent.mkdir(parents=True, exist_ok=True)
        cell.file.write_text("{}")
    assert set(cells_module.stored_cells()) == {cell.key for table in TABLES.values() for cell in table()}


def test_a_run_without_a_teacher_is_one_run_for_all_teachers() -> None:
    weak, strong = (Cell("english", teacher, "small", "ntp", "2M", 0) for teacher in ("weak", "strong"))
    assert weak.file == strong.file
    assert (
        Cell("english", "weak", "small", "add", "2M", 0).file != Cell("english", "strong", "small", "add", "2M", 0).file
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("english/weak/small/add/2M", "expected CORPUS/TEACHER/SIZE/VARIANT/TOKENS/SEED"),
        ("latin/weak/small/add/2M/0", "'latin' is none of standard_library, english"),
        ("english/weak/small/sub/2M/0", "'sub' is none of"),
        ("english/weak/small/add/many/0", "'many'; expected a number"),
        ("english/weak/small/add/2M/x", "the seed 'x' is no whole number"),
    ],
)
def test_what_is_no_cell_is_refused(name: str, message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        parse_cell(name)


@pytest.mark.usefixtures("results")
def test_rows_pair_seeds_and_tokens_to_match_lie_between_whole_runs() -> None:
    for seed, loss in enumerate((4.0, 3.9, 3.8)):
        store("ntp", "1M", seed, validation_loss=loss, train_tokens=1e6)
        store("add", "500K", seed, validation_loss=loss + 0.1, train_tokens=5e5)
        store("add", "1M", seed, validation_loss=loss - 0.1 - seed / 10, train_tokens=1e6)
    row = statistics.row_of("standard_library", "weak", "add")
    assert row.differences == pytest.approx([-0.1, -0.2, -0.3])
    assert row.mean_difference == pytest.approx(-0.2)
    assert row.interval is not None
    assert row.interval[0] < -0.2 < row.interval[1]
    shares = statistics.shares_to_match("standard_library", "weak", "add", "train_tokens")
    # 0.1 above at 500K, 0.1 below at 1M: half-way in the logarithm.
    assert shares[0].value == pytest.approx(math.sqrt(0.5))
    assert shares[1].value < shares[0].value
    assert not any(share.is_bound for share in shares)


@pytest.mark.usefixtures("results")
def test_a_loss_that_the_shortest_run_reaches_has_a_bound() -> None:
    store("ntp", "1M", 0, validation_loss=4.0, train_tokens=1e6)
    store("add", "700K", 0, validation_loss=3.9, train_tokens=7e5)
    assert statistics.shares_to_match("standard_library", "weak", "add", "train_tokens") == [
        statistics.Share(0.7, is_bound=True)
    ]


@pytest.mark.usefixtures("results")
def test_a_loss_that_is_not_reached_has_no_share() -> None:
    store("ntp", "1M", 0, validation_loss=4.0, train_tokens=1e6)
    store("add", "500K", 0, validation_loss=4.4, train_tokens=5e5)
    store("add", "1M", 0, validation_loss=4.1, train_tokens=1e6)
    assert statistics.shares_to_match("standard_library", "weak", "add", "train_tokens") == []


def test_every_variant_without_labels_is_a_whole_configuration(tmp_path: Path) -> None:
    cells = {cell.key for table in TABLES.values() for cell in table() if cell.seed == 0}
    for cell in {cell for cell in cells if cell.teacher == "none"}:
        inputs = Inputs(Places(tmp_path), cell.corpus, "none", cell.size)
        inputs.__dict__["data"] = tmp_path
        config = train_config(cell, inputs)
        assert (config.num_tokens, config.seed) == (cell.num_tokens, cell.seed)


def test_the_page_is_what_the_stored_results_give() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page()
