"""The evidence: cells have names and files, rows come from stored results, and the page holds nothing typed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from benchmarks.evidence import answers, page, scaling, statistics
from benchmarks.evidence import cells as cells_module
from benchmarks.evidence.cells import Cell, parse_cell
from benchmarks.evidence.corpora import Places
from benchmarks.evidence.inputs import Inputs
from benchmarks.evidence.run import forget, repeated, train_config
from benchmarks.evidence.tables import SCALING_RATES, SCALING_SHAPES, SCALING_TOKENS, TABLES, rated, scaled

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
        ("english/none/small/add/2M/0", "add learns from a teacher: weak or strong"),
        ("english/weak/small/add/2M/x", "the seed 'x' is no whole number"),
    ],
)
def test_what_is_no_cell_is_refused(name: str, message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        parse_cell(name)


@pytest.mark.usefixtures("results")
def test_a_rerun_is_compared_in_all_but_its_times() -> None:
    def result(seconds: float, loss: float) -> dict[str, Any]:
        rows = [[1e5, 6e11, seconds, loss]]
        return {
            "validation_loss": 4.0,
            "train_seconds": seconds,
            "versions": {},
            "curve": {"columns": [], "rows": rows},
        }

    assert repeated(result(10.0, 5.0)) == repeated(result(12.0, 5.0))
    assert repeated(result(10.0, 5.0)) != repeated(result(10.0, 5.1))


@pytest.mark.usefixtures("results")
def test_rows_pair_seeds_and_tokens_to_match_lie_between_whole_runs() -> None:
    for seed, loss in enumerate((4.0, 3.9, 3.8)):
        store("ntp", "1M", seed, validation_loss=loss, train_tokens=1e6)
        store("add", "500K", seed, validation_loss=loss + 0.1, train_tokens=5e5)
        store("add", "1M", seed, validation_loss=loss - 0.1 - seed / 10, train_tokens=1e6)
    row = statistics.row_of("standard_library", "weak", "add")
    assert row.differences == pytest.approx([-0.1, -0.2, -0.3])
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
def test_a_loss_that_is_not_reached_is_a_miss() -> None:
    store("ntp", "1M", 0, validation_loss=4.0, train_tokens=1e6)
    store("add", "500K", 0, validation_loss=4.4, train_tokens=5e5)
    store("add", "1M", 0, validation_loss=4.1, train_tokens=1e6)
    found = statistics.shares_to_match("standard_library", "weak", "add", "train_tokens")
    assert list(map(str, found)) == ["not reached"]
    assert found[0].is_at_most(0.7) is False


@pytest.mark.usefixtures("results")
def test_sentences_say_what_the_results_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "dictionary_flops", lambda *_: 1e12)
    shuffled = {"shuffle_batch": {"loss_delta": 1.5, "standard_error": 0.1}}
    for seed, loss in enumerate((4.0, 3.9)):
        store("ntp", "1M", seed, validation_loss=loss, train_tokens=1e6, train_flops=6e12, teacher_flops=0.0)
        store("kd-1-cosine", "1M", seed, validation_loss=loss - (0.3 if seed else 0.1))
        for tokens, gain in (("700K", 0.05), ("1M", 0.2)):
            amounts = {"train_tokens": float(tokens.replace("K", "e3").replace("M", "e6")), "train_flops": 5.5e12}
            amounts |= {"teacher_flops": 0.5e12, "teacher_train_flops": 2e12}
            store("recommended", tokens, seed, validation_loss=loss - gain, probes=shuffled, **amounts)
    against_ntp, against_kd, cost, usage = answers.answers("standard_library", "weak")
    assert "differs from NTP by −0.200, −0.200 nats (mean −0.200, 2 seeds, ahead on each)" in against_ntp
    assert "under 70% of its tokens (70% or less was aimed at, and reached on 2 of 2)" in against_ntp
    # Whether 80% would do is open.
    assert (
        "under 92% of its training FLOPs (80% or less was aimed at, and reached on 0 of 2, 2 undecided)." in against_ntp
    )
    assert "`recommended` differs from `kd-1-cosine` by −0.100, +0.100 nats" in against_kd
    assert "no clear order" in against_kd
    assert "takes 1.50 times NTP's FLOPs, and under 150% of them to reach NTP's final loss" in cost
    assert "+1.500 ± 0.196" in usage
    assert answers.answers("english", "weak") == []


@pytest.mark.usefixtures("results")
def test_the_scaling_fit_finds_the_curve_that_the_runs_lie_on() -> None:
    true = (2.0, 0.4, 0.5, 1.2, 0.6)
    scaling.fits.cache_clear()
    for shape, parameters in zip(SCALING_SHAPES, (2e5, 5e5, 1e6), strict=True):
        for tokens in SCALING_TOKENS:
            amount = float(tokens.replace("K", "e3").replace("M", "e6"))
            for name, change in (("ntp", 0.0), ("recommended", -0.1)):
                curve = (*true[:3], true[3] + change, true[4])
                loss = float(scaling.predicted(curve, parameters, amount))
                for rate, worse in zip(SCALING_RATES, (0.0, 0.3), strict=True):
                    facts = {"validation_loss": loss + worse, "train_tokens": amount, "num_parameters": parameters}
                    assert scaling.fits() is None
                    scaling.fits.cache_clear()
                    store(rated(scaled(name, shape), rate), tokens, 0, **facts)
    fits = scaling.fits()
    assert fits is not None
    found = fits["ntp"]
    assert found.residual < 1e-3
    assert scaling.predicted(found.best, 2e6, 2e6) == pytest.approx(scaling.predicted(true, 2e6, 2e6), abs=0.01)
    gained = scaling.gain(1e6, 1e6, "recommended")
    assert gained[0] == pytest.approx(-0.1, abs=0.01)
    share, fewest, most = scaling.token_share(1e6, 1e6, "recommended")
    assert fewest <= share <= most < 1
    scaling.fits.cache_clear()


@pytest.mark.usefixtures("results")
def test_a_cell_again_starts_from_its_first_step(tmp_path: Path) -> None:
    places = Places(tmp_path / "work")
    cell = Cell("standard_library", "weak", "small", "add", "1M", 0)
    folder = Inputs(places, "standard_library", "weak", "small").folder
    mine, others = ("add-1M-0", "add-1M-0-evaluation"), ("add-1M-1", "teacher", "add-lambda-1-1M-0")
    for name in (*mine, *others):
        (folder / name).mkdir(parents=True)
    forget(cell, places)
    assert {path.name for path in folder.iterdir()} == set(others)


def test_every_variant_without_labels_is_a_whole_configuration(tmp_path: Path) -> None:
    cells = {cell.key for table in TABLES.values() for cell in table() if cell.seed == 0}
    for cell in {cell for cell in cells if cell.teacher == "none"}:
        inputs = Inputs(Places(tmp_path), cell.corpus, "none", cell.size)
        inputs.__dict__["data"] = tmp_path
        config = train_config(cell, inputs)
        assert (config.num_tokens, config.seed) == (cell.num_tokens, cell.seed)


def test_the_page_is_what_the_stored_results_give() -> None:
    drawings = {comparison: page.curves(*comparison) for comparison in page.COMPARISONS}
    assert page.PAGE.read_text(encoding="utf-8") == page.page(drawings, page.scaling_curves())
    assert page.SHORT_START + answers.in_short() + page.SHORT_END in page.README.read_text(encoding="utf-8")
