"""Recipes: the paper's counts to the unit, every one trains, labels chosen another way are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import AutoConfig

import cocomix
from cocomix import AttributionConfig, CocomixError, ExtractConfig, StudentConfig, extract, train
from cocomix.base.artifacts import read_json
from cocomix.base.kinds import read_metrics
from cocomix.modeling import flops
from cocomix.tools.plan.listing import RecipesConfig, list_recipes
from cocomix.tools.plan.recipe_rows import recipe_row
from cocomix.training.recipes import PAPER_LABELS, RECIPES, VARIANTS, find_recipe
from cocomix.training.sizes import SIZES, Size
from cocomix.training.widths import equal_flops_width, equal_parameters_width, meta_model, num_active_parameters
from tests.conftest import Tiny

TEN_STEPS = 10 * 8 * 16
WITH_PAPER_LABELS = ("cocomix", "add", "loss-only")
WITH_ACTIVATION_LABELS = ("activation-labels", "recommended")


@pytest.fixture(scope="module")
def paper_labels(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("labels") / "concepts"
    extract(ExtractConfig(teacher=tiny.teacher, sae=tiny.sae, data=tiny.data, output=output, attribution=PAPER_LABELS))
    return output


@pytest.mark.parametrize(
    "variant",
    [pytest.param(each, marks=() if each in ("cocomix", "recommended") else pytest.mark.slow) for each in VARIANTS],
)
def test_every_recipe_trains_ten_steps(variant: str, tiny: Tiny, tmp_path: Path, paper_labels: Path) -> None:
    inputs: dict[str, Path] = {}
    if variant in WITH_PAPER_LABELS:
        inputs = {"labels": paper_labels}
    elif variant in WITH_ACTIVATION_LABELS:
        inputs = {"teacher": tiny.teacher, "sae": tiny.sae}
    elif variant in ("kd", "hidden-regression"):
        inputs = {"teacher": tiny.teacher}
    config = cocomix.recipe(
        f"gpt2-tiny-{variant}",
        data=tiny.data,
        output=tmp_path / "run",
        num_tokens=TEN_STEPS,
        num_evaluations=1,
        **inputs,
    )
    facts = train(config).facts
    assert facts["num_steps"] == 10
    last = [line for line in read_metrics(tmp_path / "run") if "lm_loss" in line][-1]
    assert config.concept_loss.is_on(config) == (variant in WITH_PAPER_LABELS + WITH_ACTIVATION_LABELS)
    assert ("concept_loss" in last) == (config.concept_loss.is_on(config) and config.concept_loss.end == 1)
    assert ("distillation_loss" in last) == (variant == "kd")
    assert ("hidden_loss" in last) == (variant == "hidden-regression")


@pytest.mark.parametrize("more", [{}, {"concept_stride": 2}])
def test_approximations_are_settings_of_a_run_where_they_are_on(
    more: dict[str, int], tiny: Tiny, tmp_path: Path
) -> None:
    name, output = "gpt2-tiny-activation-labels", tmp_path / "run"
    student = find_recipe(name).config().student
    student = dataclasses.replace(student, mixer=student.mixer.changed(**more))
    inputs = {"data": tiny.data, "labels": tiny.concepts, "output": output, "student": student}
    train(cocomix.recipe(name, num_tokens=TEN_STEPS, num_evaluations=1, **inputs))
    settings = read_json(output / "settings.json")["settings"]["student"]
    assert {key: value for key, value in settings.items() if key == "concept_stride"} == more
    assert AutoConfig.from_pretrained(output).concept_stride == more.get("concept_stride", 1)


@pytest.mark.parametrize(
    ("size", "active", "baseline"),
    [
        ("69m", 68_269_568, 69_445_584),
        ("386m", 388_410_368, 386_274_832),
        ("1b", 1_380_800_512, 1_373_389_328),
    ],
)
def test_active_parameters_are_the_papers(size: str, active: int, baseline: int) -> None:
    counts = [
        num_active_parameters(meta_model(find_recipe(f"gpt2-{size}-{variant}").config(), SIZES[size]))
        for variant in ("cocomix", "ntp", "kd")
    ]
    assert counts == [active, baseline, baseline]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_baseline_widths_are_the_nearest_of_equal_parameters(size: Size) -> None:
    found = equal_parameters_width(VARIANTS["cocomix"](size), size)
    assert found.hidden_size == size.baseline_width
    assert abs(found.difference) < 0.02


@pytest.mark.parametrize("size", [SIZES["tiny"], SIZES["small"], SIZES["69m"]])
def test_equal_flops_widths_are_near(size: Size) -> None:
    found = equal_flops_width(VARIANTS["cocomix"](size), size)
    assert found.hidden_size == VARIANTS["ntp-equal-flops"](size).student.hidden_size
    assert abs(found.difference) < 0.017


@pytest.mark.parametrize(
    ("size", "causal", "full", "here"),
    [("69m", 1.29, 1.36, 1.24), ("386m", 1.73, 1.82, 1.70), ("1b", 1.76, 1.81, 1.73)],
)
def test_flops_over_ntp_are_the_papers(
    size: str, causal: float, full: float, here: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [meta_model(find_recipe(f"gpt2-{size}-{variant}").config(), SIZES[size]) for variant in ("cocomix", "ntp")]

    def ratio() -> float:
        ours, plain = (flops.training_flops_per_token(model, 1024) for model in models)
        return round(ours / plain, 2)

    assert ratio() == here
    monkeypatch.setattr(flops, "_skipped_flops", lambda *_: (0.0, 0.0))  # as published, the last block runs everywhere
    assert ratio() == causal
    monkeypatch.setattr(flops, "mean_keys", lambda num_positions, *_: num_positions)
    assert ratio() == full


def test_overrides_reach_the_configuration(tmp_path: Path) -> None:
    student = StudentConfig(family="llama", hidden_size=32)
    config = cocomix.recipe("gpt2-tiny-kd", data="d", output=tmp_path, num_tokens=5, student=student, teacher="t")
    assert (config.num_tokens, config.student, config.teacher) == (5, student, Path("t"))
    assert type(config) is cocomix.TrainConfig
    assert config.optimizer == VARIANTS["kd"](SIZES["tiny"]).optimizer


def test_labels_on_the_fly_are_the_recipes() -> None:
    inputs = {"data": "d", "output": "o", "teacher": "t", "sae": "s"}
    assert cocomix.recipe("gpt2-69m-cocomix", **inputs).attribution == PAPER_LABELS
    assert cocomix.recipe("gpt2-69m-activation-labels", **inputs).attribution == AttributionConfig()


def test_names_of_version_0_1_are_taken() -> None:
    old = {"concept_loss_weight": 0.5, "concept_loss_schedule": "linear", "num_concepts": 99}
    config = cocomix.recipe("gpt2-tiny-cocomix", data="d", output="o", labels="l", **old)
    assert (config.concept_loss.weight, config.concept_loss.schedule) == (0.5, "linear")
    assert config.student.mixer.num_concepts == 99


def test_labels_chosen_another_way_are_refused(tiny: Tiny, paper_labels: Path) -> None:
    inputs = {"data": tiny.data, "output": "o"}
    with pytest.raises(CocomixError, match=r"criterion 'activation_value'.*'attribution'"):
        cocomix.recipe("gpt2-tiny-cocomix", labels=tiny.concepts, **inputs)
    with pytest.raises(CocomixError, match=r"--attribution\.criterion activation_value"):
        cocomix.recipe("gpt2-tiny-activation-labels", labels=paper_labels, **inputs)
    lowers = dataclasses.replace(PAPER_LABELS, sign="lowers_loss")
    with pytest.raises(CocomixError, match=r"sign.*'raises_loss'"):
        cocomix.recipe("gpt2-tiny-cocomix", labels=paper_labels, attribution=lowers, **inputs)
    wanted = cocomix.recipe("gpt2-tiny-cocomix", labels=tiny.concepts, attribution=AttributionConfig(), **inputs)
    assert wanted.labels == tiny.concepts


def test_another_shape_than_the_recipes_is_warned_about(
    tiny: Tiny, paper_labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cocomix.recipe("gpt2-small-cocomix", data=tiny.data, output="o", labels=paper_labels)
    expected = "16 tokens in a window, not 128 and 300 tokens in the vocabulary, not 2,048 and 32 concepts, not 1,024"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("gpt2-69m-cocomixx", {}, r"'gpt2-69m-cocomixx'.*gpt2-69m-cocomix"),
        ("llama", {}, r"'llama'.*`cocomix recipes`"),
        ("gpt2-tiny-ntp", {"batchsize": 1}, r"'batchsize'.*batch_size"),
        ("gpt2-tiny-kd", {}, "--teacher"),
        ("gpt2-tiny-cocomix", {}, "--labels"),
    ],
)
def test_what_is_wrong_is_one_sentence(name: str, overrides: dict[str, int], message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        cocomix.recipe(name, data="d", output="o", **overrides)


def test_the_list_has_every_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(RECIPES) == len(SIZES) * len(VARIANTS)
    rows = list_recipes(RecipesConfig(json=True))["recipes"]
    assert json.loads(json.dumps(rows)) == rows
    assert [row["name"] for row in rows] == list(RECIPES)
    by_name = {row["name"]: row for row in rows}
    paper, kd, mix = (by_name[f"gpt2-69m-{variant}"] for variant in ("cocomix", "kd", "mix-only"))
    assert paper["num_active_parameters"] == 68_269_568
    # Labels by attribution take the teacher forward and back, distillation forward alone.
    assert paper["teacher_flops_per_token"] > kd["teacher_flops_per_token"] > 0
    assert mix["teacher_flops_per_token"] == 0
    monkeypatch.setenv("COLUMNS", "200")  # wide enough for whole names
    text = list_recipes(RecipesConfig())
    assert all(name in text for name in RECIPES)
    assert "68.3M" in text


@pytest.mark.parametrize(
    "name",
    [name if name.startswith("gpt2-tiny") else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES],
)
def test_the_stored_rows_are_those_counted(name: str) -> None:
    """If this fails after a change of recipes or counts: `python -m cocomix.tools.plan.recipe_rows`."""
    (stored,) = (row for row in list_recipes(RecipesConfig(json=True))["recipes"] if row["name"] == name)
    assert dataclasses.asdict(recipe_row(RECIPES[name])) == stored
