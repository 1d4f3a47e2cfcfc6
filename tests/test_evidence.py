"""The evidence: cells have names and files, choices follow their rules, and numbers come from stored results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.evidence import cells as cells_module
from benchmarks.evidence import choice, copying, dictionaries, jobs, page, rows, run, sizes, tables
from benchmarks.evidence import inputs as inputs_module
from benchmarks.evidence.__main__ import main
from benchmarks.evidence.cells import Cell, cell_of, parse_cell, stored_cells
from benchmarks.evidence.corpora import Places, prepare_config
from benchmarks.evidence.inputs import Inputs, parallel_of
from benchmarks.evidence.numbers import NOT_REACHED, share_to_match, student_cost, whole_cost
from benchmarks.evidence.run import forget, run_cell, train_config
from benchmarks.evidence.sizes import REGIMES

from cocomix import AttributionConfig, CocomixError, TokenDataset
from cocomix.labels.attribution import ConceptExtractor, random_dictionary
from cocomix.modeling.teacher import load_teacher
from cocomix.objectives.config import ConceptLossConfig, DistillationConfig
from cocomix.sae.model import SparseAutoencoder
from cocomix.training.recipes import recommended
from cocomix.training.widths import equal_flops_width
from tests.conftest import Tiny, write_corpus


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cells_module, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def store(cell: Cell, loss: float, **more: float) -> None:
    facts = {"train_tokens": cell.num_tokens, "train_flops": 1e6 * cell.num_tokens, "teacher_flops": 0.0}
    curve = {"columns": [], "rows": [[1e5, loss + 1], [1e6, loss]]}
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    cell.file.write_text(json.dumps(facts | {"validation_loss": loss, "curve": curve} | more))


def fill(size: str, table: str, loss: Callable[[Cell], float]) -> None:
    """Store results until a table asks for nothing more."""

    def start(cell: Cell) -> int:
        store(cell, loss(cell))
        return 0

    assert not jobs.run_table(lambda: tables.TABLES[table](tables.Part(size)), start, num_workers=1)


def best_at(rate: float, setting: str = "") -> Callable[[Cell], float]:
    """Losses that are lowest at a rate, and with a setting that begins so."""
    return lambda cell: (
        4 + abs(math.log(cell.rate / rate)) + 0.01 * (cell.setting != "" and not cell.setting.startswith(setting))
    )


def test_names_and_files_lead_back_to_the_cell() -> None:
    both = cell_of("nano", "prose", "strong", "both", 0.004, setting="0.3-cosine+10", percent=35, seed=2)
    assert both.name == "nano/prose/strong/both_0.3-cosine+10/35/0.004/2"
    assert both.num_tokens == 2_800_000
    plain = cell_of("nano", "prose", "strong", "ntp", 0.0005)
    assert plain == cell_of("nano", "prose", "weak", "ntp", 0.0005)  # one run in every comparison
    for cell in (both, plain):
        assert parse_cell(cell.name) == cell
        store(cell, 4.0)
    assert set(stored_cells("nano")) == {both, plain}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nano/prose/weak/kd_1/100/0.004", "expected SIZE/CORPUS/TEACHER/ROW/PERCENT/RATE/SEED"),
        ("pico/prose/weak/kd_1/100/0.004/0", "'pico' is none of toy, nano"),
        ("nano/latin/weak/kd_1/100/0.004/0", "'latin' is none of prose, standard_library"),
        ("nano/prose/weak/sub/100/0.004/0", "'sub' is none of"),
        ("nano/prose/none/kd_1/100/0.004/0", "the teacher of kd must be weak or strong"),
        ("nano/prose/weak/ntp/100/0.004/0", "the teacher of ntp must be none"),
        ("nano/prose/weak/kd_heavy/100/0.004/0", "heavy"),
        ("nano/prose/weak/kd_1/all/0.004/0", "'all'"),
    ],
)
def test_what_is_no_cell_is_refused(name: str, message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        parse_cell(name)


def test_the_grid_of_rates_grows_until_the_best_is_inside() -> None:
    with pytest.raises(CocomixError, match=r"toy/prose/none/ntp/100/0.004/0 has no result.*--table rates --size toy"):
        choice.chosen_rate("toy", "prose", "ntp")
    fill("toy", "rates", best_at(0.032))
    assert choice.chosen_rate("toy", "prose", "ntp") == 0.032
    assert [cell.rate for cell in choice.rate_cells("toy", "prose", "kd")] == [0.004, 0.008, 0.016, 0.032, 0.064]


def test_other_texts_search_the_rate_at_the_weight_that_prose_chose() -> None:
    fill("toy", "rates", best_at(0.008, "3"))
    assert {cell.corpus for cell in stored_cells("toy") if cell.row == "kd"} == {"prose"}
    fill("toy", "weights", best_at(0.008, "3-cosine"))
    searched = choice.rate_cells("toy", "standard_library", "kd")
    assert {cell.setting for cell in searched} == {"3-cosine"}
    assert all(cell.result() for cell in searched)


def test_the_grid_does_not_grow_for_ever() -> None:
    fill("toy", "rates", best_at(1e-9))
    assert choice.chosen_rate("toy", "prose", "ntp") == 0.0005


def test_the_main_table_takes_the_best_of_rates_and_weights() -> None:
    loss = best_at(0.008, "3")
    fill("toy", "rates", loss)
    with pytest.raises(CocomixError, match="--table weights --size toy"):
        list(tables.main(tables.Part("toy")))
    fill("toy", "weights", loss)
    fill(
        "toy",
        "main",
        lambda cell: loss(cell) - 0.1 * (cell.seed > 0 and cell.row != "ntp") + (100 - cell.percent) / 250,
    )
    assert sorted(tables.results_of("toy", "prose", "strong", "kd")) == [0, 1]
    cells = list(dict.fromkeys(tables.main(tables.Part("toy"))))
    assert {(cell.teacher, cell.row, cell.setting, cell.rate) for cell in cells} == {
        ("none", "ntp", "", 0.008),
        ("weak", "kd", "3-cosine", 0.008),
        ("weak", "recommended", "3-cosine", 0.008),
        ("strong", "kd", "3", 0.008),
        ("strong", "recommended", "3", 0.008),
    }
    assert {cell.percent for cell in cells if cell.teacher == "strong"} == {50, 100}
    # Seed 1, strong teacher: 0.1 above NTP's loss at 50 % of the tokens and 0.1 below at 100 %, so half-way in the logarithm.
    assert [line.count("3.950 (−0.050); 100%, 71%") for line in page.main_table("toy").splitlines()] == [
        0,
        0,
        0,
        2,
        2,
        0,
    ]


def test_a_variant_runs_at_the_rate_and_weight_of_what_it_varies_and_with_more_seeds_if_it_is_ahead() -> None:
    loss = best_at(0.008, "3-cosine")
    for name in ("rates", "weights"):
        fill("toy", name, loss)
    fill("toy", "variants", lambda cell: loss(cell) - 0.1 * (cell.row == "fewer") + 0.1 * (cell.row == "next-tokens"))
    cells = [cell for cell in stored_cells("toy") if cell.corpus == "prose" and cell.rate == 0.008]
    seeds = {row: {cell.seed for cell in cells if cell.row == row} for row in ("random", "fewer", "next-tokens")}
    assert seeds == {"random": {0, 1}, "fewer": {0, 1}, "next-tokens": {0}}
    assert {cell.setting for cell in cells if cell.row in seeds} == {"3-cosine"}
    (ahead,) = [
        line for line in page.variants_table("toy").splitlines() if "English prose | a quarter of the latents" in line
    ]
    assert "| 3.900, 3.900 | −0.100 |" in ahead


def test_a_part_of_a_table_needs_the_results_of_that_part_alone() -> None:
    part = tables.Part("toy", corpora=["prose"], teachers=["weak"], rows=["ntp", "kd"])
    for name in ("rates", "weights"):
        for cell in list(tables.TABLES[name](part)):
            store(cell, best_at(0.008)(cell))
    cells = list(tables.main(part))
    assert {(cell.corpus, cell.teacher, cell.row) for cell in cells} == {
        ("prose", "none", "ntp"),
        ("prose", "weak", "kd"),
    }


def test_base_asks_for_no_other_table() -> None:
    cells = list(dict.fromkeys(tables.main(tables.Part("base"))))
    assert [cell.name for cell in cells] == [
        "base/prose/none/ntp/100/0.002/0",
        "base/prose/weak/recommended_1-cosine/100/0.002/0",
        "base/prose/weak/both_1-cosine+1-cosine/100/0.002/0",
    ]
    assert not list(tables.rates(tables.Part("base")))
    assert not list(tables.weights(tables.Part("base")))
    assert parallel_of("cuda", REGIMES["base"]).compile
    assert parallel_of("cuda", REGIMES["base"]).precision == "bfloat16"


def test_a_failed_cell_stops_no_other_and_teachers_are_made_first() -> None:
    named = [(teacher, row) for teacher in ("weak", "strong") for row in ("ntp", "kd", "alignment")]
    cells = [cell_of("nano", "prose", teacher, row, 0.004) for teacher, row in named]
    ordered = jobs.in_order(list(dict.fromkeys(cells)))
    assert [cell.name.split("/")[2:4] for cell in ordered] == [
        ["weak", "kd_1-cosine"],
        ["none", "ntp"],
        ["strong", "kd_1-cosine"],
        ["weak", "alignment_0.1"],
        ["strong", "alignment_0.1"],
    ]

    def start(cell: Cell) -> int:
        if cell.row == "kd":
            return 1
        store(cell, 4.0)
        return 0

    failed = jobs.run_table(lambda: cells, start, num_workers=2)
    assert {cell.row for cell in failed} == {"kd"}
    assert {cell.row for cell in stored_cells("nano")} == {"ntp", "alignment"}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ({50: 4.1, 100: 3.9}, f"{math.sqrt(0.5):.0%}"),  # half-way in the logarithm
        ({70: 3.9}, "under 70%"),  # the shortest run is there already
        ({50: 4.4, 100: 4.1}, NOT_REACHED),
        ({100: 4.0}, "100%"),
        ({}, ""),
    ],
)
def test_what_reaching_the_loss_takes(runs: dict[int, float], expected: str) -> None:
    made = [{"train_flops": float(percent), "validation_loss": loss} for percent, loss in runs.items()]
    assert share_to_match(made, {"train_flops": 100.0, "validation_loss": 4.0}, student_cost) == expected


def test_a_teacher_is_paid_for_alone_shared_or_not() -> None:
    result = {"train_flops": 5.0, "teacher_flops": 0.5, "teacher_train_flops": 2.0, "dictionary_flops": 1.0}
    assert whole_cost(result) == 8.5
    assert whole_cost(result, 10) == pytest.approx(5.8)
    assert whole_cost({"train_flops": 5.0, "teacher_flops": 0.0}) == 5.0


def test_shares_are_one_a_seed_or_one_if_all_agree() -> None:
    assert page._with_shares("3.75", ["33%", "34%", "34%"], 3) == "3.75; 33%, 34%, 34%"
    assert page._with_shares("3.75", ["34%"] * 3, 3) == "3.75; 34%"
    assert page._with_shares("3.75", ["34%"], 3) == "3.75; 34% (1 of 3 seeds)"
    assert page._with_shares("3.75", [], 3) == "3.75"


def test_rows_are_what_their_names_say() -> None:
    size = REGIMES["nano"].size
    made = {name: row.build(size, row.default) for name, row in rows.ROWS.items()}
    assert all(config.student.family == "qwen3" and config.num_tokens == 8_000_000 for config in made.values())
    assert made["kd"].student == made["ntp"].student == made["alignment"].student
    assert made["ntp"].student.hidden_size == made["recommended"].student.hidden_size == 96
    assert made["ntp-wider"].student.hidden_size == 108
    ended = rows.ROWS["recommended"].build(size, "1-cosine-0.5")
    assert ended == recommended(size)
    assert equal_flops_width(ended, size).hidden_size == 102
    assert equal_flops_width(made["recommended"], size).hidden_size == 108
    assert made["published"].concept_loss == ConceptLossConfig(weight=0.1)
    assert made["published"].attribution.criterion == "attribution"
    assert made["recommended"].concept_loss == ConceptLossConfig(weight=1.0, schedule="cosine")
    assert ended.concept_loss == ConceptLossConfig(weight=1.0, schedule="cosine", end=0.5)
    to_end = rows.ROWS["to-end"].build(size, "1-cosine-0.5")
    assert replace(to_end, concept_loss=ended.concept_loss) == ended != to_end
    assert made["predicted"].student.mixer.mixing == "none"
    both = rows.ROWS["both"].build(size, "0.3-cosine+10")
    assert both.concept_loss == ConceptLossConfig(weight=0.3, schedule="cosine")
    assert both.distillation == DistillationConfig(weight=10.0)
    assert both.student == made["recommended"].student
    assert (made["alignment"].hidden_regression.loss, made["alignment"].hidden_regression.end) == ("cosine", 0.5)
    assert made["multi-token"].multi_token.schedule == "linear"
    assert [
        rows.needs_teacher(name, size) for name in ("ntp", "pause", "multi-token", "kd", "alignment", "published")
    ] == [
        *(False, False, False),
        *(True, True, True),
    ]


def test_prose_is_given_by_files(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match="--prose"):
        prepare_config("prose", REGIMES["nano"], Places(tmp_path))
    train, more, held_out = (tmp_path / name for name in ("train.parquet", "more.parquet", "validation.parquet"))
    config = prepare_config("prose", REGIMES["nano"], Places(tmp_path, (train, held_out, more)))
    assert (config.text, config.validation_text) == ((train, more), (held_out,))


def test_the_random_dictionary_that_reads_gives_the_labels_of_its_student(tiny: Tiny) -> None:
    sae = SparseAutoencoder.from_pretrained(tiny.sae)
    teacher, layer = load_teacher(tiny.teacher), 0
    attribution = rows.ROWS["random"].build(REGIMES["toy"].size, "1").attribution
    (windows,) = TokenDataset(tiny.data).batches(4, 4)
    plain = replace(attribution, control="none")
    random = random_dictionary(sae, AttributionConfig().seed)
    made, read = (
        ConceptExtractor(teacher, dictionary, layer, config)(windows.input_ids)
        for dictionary, config in ((sae, attribution), (random, plain))
    )
    assert torch.equal(made, read)


def test_a_cell_again_starts_from_its_first_step(tmp_path: Path) -> None:
    places = Places(tmp_path / "work")
    cell = cell_of("toy", "standard_library", "weak", "kd", 0.004)
    folder = Inputs(places, cell.regime, cell.corpus, cell.teacher).folder
    for name in (cell.stem, f"{cell.stem}-evaluation", "teacher", f"{cell.stem[:-1]}1"):
        (folder / name).mkdir(parents=True)
    forget(cell, places)
    assert {path.name for path in folder.iterdir()} == {"teacher", f"{cell.stem[:-1]}1"}


@pytest.mark.parametrize("same", [True, False])
def test_a_teacher_of_the_same_dataset_beside_the_results_is_not_made_again(
    same: bool, results: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = results / "toy" / "standard_library" / "weak" / "teacher"
    kept.mkdir(parents=True)
    data = TokenDataset(tiny.data).fingerprint if same else "another"
    (kept / "manifest.json").write_text(json.dumps({"settings": {"inputs": {"data": data}}}))
    monkeypatch.setattr(Inputs, "data", tiny.data)
    monkeypatch.setattr(inputs_module, "train", lambda config: None)
    inputs = Inputs(Places(tmp_path / "work"), REGIMES["toy"], "standard_library", "weak")
    assert inputs.teacher == (kept if same else inputs.folder / "teacher")


def test_the_list_says_what_a_table_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--table", "main", "--size", "base", "--list"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].endswith("3 cells")
    assert "base/prose/none/ntp/100/0.002/0" in lines[-4]


def test_a_token_repeats_where_it_and_the_one_before_it_stood_together() -> None:
    window = torch.tensor([[5, 6, 7, 5, 6, 6, 6, 6], [1, 1, 1, 2, 1, 2, 3, 1]])
    assert copying.repeats(window).int().tolist() == [[0, 0, 0, 0, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1, 0, 0]]


@pytest.mark.slow
def test_all_tables_at_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From text to the pages: rates, weights, seeds, shorter runs; and a cell again comes out equal."""
    toy = replace(REGIMES["toy"], corpora=("prose",), rates=(0.004, 0.008))
    monkeypatch.setitem(sizes.REGIMES, "toy", toy)
    for name in ("kd", "recommended"):
        monkeypatch.setitem(
            rows.ROWS, name, replace(rows.ROWS[name], settings=("1-cosine", "0.3-cosine"), settings_ahead=())
        )
    monkeypatch.setattr(choice, "MAX_EXTENSIONS", 0)
    monkeypatch.setattr(run, "NUM_EVALUATIONS", 2)
    places = Places(tmp_path / "work", (write_corpus(tmp_path / "prose.jsonl"),))
    for table in ("rates", "weights", "main", "variants"):
        assert not jobs.run_table(
            lambda name=table: tables.TABLES[name](tables.Part("toy")), lambda cell: run_cell(cell, places), 1
        )
    monkeypatch.setattr(dictionaries, "STEERING", {"num_new_tokens": 8, "num_concepts": 4, "num_prompts": 16})
    dictionaries.read_students(tables.Part("toy"), places)
    copying.read_students(tables.Part("toy"), places)
    cells = list(stored_cells("toy"))
    assert {cell.percent for cell in cells} > {50, 100}
    strong = next(cell for cell in cells if (cell.teacher, cell.row, cell.percent) == ("strong", "recommended", 100))
    result = strong.result()
    assert result is not None
    assert {"teacher_loss", "teacher_train_flops", "dictionary_flops", "dictionary_fvu"} <= result.keys()
    assert result["train_tokens"] == 2048
    # What the list says a run costs is what it cost.
    plain = next(cell for cell in cells if (cell.row, cell.percent) == ("ntp", 100))
    assert (plain.result() or {})["train_flops"] == pytest.approx(tables.planned_flops(plain))
    expected = result["train_flops"] + result["teacher_flops"]
    assert expected == pytest.approx(tables.planned_flops(strong), rel=1e-6)
    assert run_cell(strong, places, again=True) == 0
    config = train_config(strong, Inputs(places, toy, "prose", "strong"))
    assert config.parallel.device == "cpu"
    monkeypatch.setattr(page, "SIZE", "toy")
    monkeypatch.setattr(page, "CORPORA", {"prose": "English prose"})
    found = page.blocks()
    names = ("main", "losses", "costs", "rates", "weights", "one change", "readings", "copying", "stability", "figure")
    assert [name for name in names if found[name] == page.NOTHING] == []
