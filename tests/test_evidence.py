"""The evidence: cells have names and files, numbers come from stored results, and the fit finds what it should."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from benchmarks.evidence import cells as cells_module
from benchmarks.evidence import rows, scaling
from benchmarks.evidence.cells import Cell, parse_cell
from benchmarks.evidence.corpora import Places
from benchmarks.evidence.run import forget, inputs_of, repeated, train_config
from benchmarks.evidence.tables import SCALING_RATES, SCALING_SHAPES, SCALING_TOKENS, TABLES, rated, scaled
from benchmarks.evidence.variants import VARIANTS

from cocomix import CocomixError
from cocomix.base.numbers import parse_count
from cocomix.objectives.config import ConceptLossConfig, DistillationConfig


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
        ("english/weak/small/add/2M/x", "the seed 'x' is not a whole number"),
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
def test_differences_pair_seeds_and_tokens_to_match_lie_between_whole_runs() -> None:
    for seed, loss in enumerate((4.0, 3.9, 3.8)):
        store("ntp", "1M", seed, validation_loss=loss, train_tokens=1e6)
        store("add", "500K", seed, validation_loss=loss + 0.1, train_tokens=5e5)
        store("add", "1M", seed, validation_loss=loss - 0.1 - seed / 10, train_tokens=1e6)
    add, ntp = (rows.results_of("standard_library", "weak", name) for name in ("add", "ntp"))
    assert rows.differences(add, ntp) == pytest.approx([-0.1, -0.2, -0.3])
    shares = rows.shares_to_match("standard_library", "weak", "add", "train_tokens")
    # 0.1 above at 500K, 0.1 below at 1M: half-way in the logarithm.
    assert shares[0] == f"{math.sqrt(0.5):.0%}"
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ({"700K": 3.9}, "under 70%"),  # the shortest run is there already
        ({"500K": 4.4, "1M": 4.1}, rows.NOT_REACHED),
        ({"1M": 4.0}, "100%"),
        ({"500K": 4.1, "1.6M": 3.8}, rows.NOT_REACHED),  # longer than NTP's run: it says nothing of fewer tokens
    ],
)
@pytest.mark.usefixtures("results")
def test_what_reaching_the_loss_takes_at_the_edges(runs: dict[str, float], expected: str) -> None:
    store("ntp", "1M", 0, validation_loss=4.0, train_tokens=1e6)
    for tokens, loss in runs.items():
        store("add", tokens, 0, validation_loss=loss, train_tokens=parse_count(tokens, "tokens"))
    assert rows.shares_to_match("standard_library", "weak", "add", "train_tokens") == [expected]


@pytest.mark.usefixtures("results")
def test_the_teacher_is_paid_for_by_those_who_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "dictionary_flops", lambda *_: 1e12)
    flops = {"train_flops": 5e12, "teacher_flops": 0.5e12, "teacher_train_flops": 2e12}
    for name, facts in (("ntp", {"train_flops": 6e12}), ("kd-1", flops), ("recommended", flops)):
        store(name, "1M", 0, validation_loss=4.0, **facts)
    paid = {name: rows.results_of("standard_library", "weak", name)[0] for name in ("ntp", "kd-1", "recommended")}
    assert [run[rows.WITH_TEACHER] for run in paid.values()] == [6e12, 7.5e12, 8.5e12]


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
    assert fits["ntp"].residual < 1e-3
    assert fits["ntp"].loss(2e6, 2e6) == pytest.approx(scaling.predicted(true, 2e6, 2e6), abs=0.01)
    assert fits["recommended"].loss(1e6, 1e6) - fits["ntp"].loss(1e6, 1e6) == pytest.approx(-0.1, abs=0.01)
    scaling.fits.cache_clear()


@pytest.mark.usefixtures("results")
def test_a_cell_again_starts_from_its_first_step(tmp_path: Path) -> None:
    places = Places(tmp_path / "work")
    cell = Cell("standard_library", "weak", "small", "add", "1M", 0)
    folder = inputs_of(cell, places).folder
    mine, others = ("add-1M-0", "add-1M-0-evaluation"), ("add-1M-1", "teacher", "add-lambda-1-1M-0")
    for name in (*mine, *others):
        (folder / name).mkdir(parents=True)
    forget(cell, places)
    assert {path.name for path in folder.iterdir()} == set(others)


def test_variants_are_what_their_names_say() -> None:
    names = ("recommended", "published", "kd-10", "recommended-kd-10", "add-insert-3-lambda-1", "ntp-64x2-rate-0.002")
    recommended, published, kd, both, inserted, small = (VARIANTS[name].config("small") for name in names)
    assert published.student.mixer.mixing == "interleave"
    assert published.concept_loss == ConceptLossConfig(weight=0.1, schedule="constant")
    assert published.attribution.criterion == "attribution"
    assert recommended.student.mixer.mixing == "add"
    assert recommended.concept_loss == ConceptLossConfig(weight=1.0, schedule="cosine")
    assert recommended.attribution.criterion == "activation_value"
    assert kd.student.hidden_size == recommended.student.hidden_size
    assert kd.distillation == both.distillation == DistillationConfig(weight=10.0)
    assert both.student == recommended.student
    assert inserted.student.mixer.insertion == 3
    assert (small.student.hidden_size, small.student.num_layers, small.optimizer.learning_rate) == (64, 2, 0.002)


def test_every_stored_run_belongs_to_a_table_and_every_table_is_run() -> None:
    assert set(cells_module.stored_cells()) == {cell.key for table in TABLES.values() for cell in table()}


def test_every_variant_without_labels_is_a_whole_configuration(tmp_path: Path) -> None:
    cells = {cell.key for table in TABLES.values() for cell in table() if cell.seed == 0}
    for cell in {cell for cell in cells if cell.teacher == "none"}:
        inputs = inputs_of(cell, Places(tmp_path))
        inputs.__dict__["data"] = tmp_path
        config = train_config(cell, inputs)
        assert (config.num_tokens, config.seed) == (cell.num_tokens, cell.seed)
