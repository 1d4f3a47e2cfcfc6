"""Plans: arithmetic that can be redone by hand, and one sentence for what is wrong."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cocomix
from cocomix import CocomixError, HiddenRegressionConfig, ParallelConfig, PlanConfig
from cocomix.base.accelerators import known_devices
from cocomix.base.numbers import parse_count
from cocomix.cli.main import main
from cocomix.mixers.config import ConceptConfig
from cocomix.tools.plan.memory import device_memory
from cocomix.tools.plan.plan_table import show_plan
from cocomix.tools.plan.recipe_rows import recipe_row
from cocomix.training.config import TrainConfig
from cocomix.training.recipes import find_recipe
from cocomix.training.sizes import SIZES
from tests.conftest import Tiny

SMALL: dict[str, Any] = {"device": "a100", "devices": 2}


@pytest.mark.parametrize(
    ("size", "devices", "parameters", "shape", "width", "cache", "precision"),
    [
        # Block 0 holds one key and value of width 64 a token, block 1 two, in four bytes a number.
        ("tiny", 8, (305_536, 274_176), (2048, 128, 512), 70, 2 * 64 * (1 + 2 * 1) * 4, "float32"),
        # Blocks 0 to 2 hold one key and value of width 512 a token, blocks 3 to 7 two, in two bytes a number.
        pytest.param(
            *("69m", 64, (85_064_192, 68_269_568), (50257, 1024, 32768), 624, 2 * 512 * (3 + 2 * 5) * 2, "bfloat16"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_plan_of_a_recipe(
    size: str, devices: int, parameters: tuple[int, int], shape: tuple[int, ...], width: int, cache: int, precision: str
) -> None:
    plan = cocomix.plan(f"gpt2-{size}-cocomix", tokens="200B", devices=devices, device="h100")
    assert (plan.num_parameters, plan.num_active_parameters) == parameters
    assert (plan.vocab_size, plan.context_length, plan.num_concepts) == shape
    assert plan.equal_parameters.hidden_size == width
    assert plan.equal_flops.hidden_size == find_recipe(f"gpt2-{size}-ntp-equal-flops").config().student.hidden_size
    assert plan.kv_cache_bytes_per_token == cache
    assert plan.label_bytes_per_token == 8
    assert plan.as_dict()["label_bytes"] == 8 * 200_000_000_000
    device = known_devices()["h100"]
    flops = plan.flops["algorithmic"].training * 200e9
    peak = getattr(device, f"{precision}_flops")
    assert plan.duration.student_hours == pytest.approx(flops / (devices * peak * 0.4) / 3600)
    labels = plan.cost.labels * 200e9 / (devices * peak * 0.4) / 3600  # in the run's precision
    assert plan.duration.labels_hours == pytest.approx(labels)
    assert plan.duration.device_hours == pytest.approx(devices * (plan.duration.student_hours + labels))
    memory = plan.memory
    assert (memory.weights, memory.gradients, memory.moments) == tuple(n * parameters[0] for n in (4, 4, 8))
    assert memory.activations_with_checkpointing < memory.activations
    assert memory.temporaries > 0


def test_shards_are_shares() -> None:
    size = SIZES["tiny"]
    run = find_recipe("gpt2-tiny-cocomix").config()
    sharded = replace(run, parallel=ParallelConfig(strategy="fsdp"))
    ddp, fsdp = (device_memory(c, size, 512, 2, n, 4, teacher=0) for c, n in ((run, 1), (sharded, 2)))
    assert fsdp.weights == ddp.weights / 2
    assert fsdp.moments == ddp.moments / 2
    assert fsdp.gradients == ddp.gradients / 2
    assert fsdp.activations == ddp.activations
    assert ddp.exchange == ddp.gradients
    assert [ParallelConfig(strategy=s).num_shares(64, 8) for s in ("ddp", "fsdp", "hsdp")] == [1, 64, 8]
    # While a step has more passes to come, every rank holds its gradients whole.
    accumulating = device_memory(sharded, size, 512, 2, 2, 1, teacher=0)
    assert accumulating.gradients == ddp.gradients
    assert accumulating.activations == pytest.approx(ddp.activations / 4, rel=1e-3)  # positions are shared by windows


def test_the_teacher_is_apart_and_runs_along_where_it_must() -> None:
    stored = cocomix.plan("gpt2-tiny-cocomix", **SMALL)
    along = cocomix.plan("gpt2-tiny-cocomix", teacher=Path("gpt2"), sae=Path("s"), **SMALL)
    assert not stored.is_teacher_online
    assert stored.memory.teacher == stored.duration.teacher_hours == 0
    assert along.is_teacher_online
    assert along.num_teacher_parameters == 124_439_808
    assert along.memory.teacher == 4 * (124_439_808 + 2 * 512 * 768)
    assert along.duration.labels_hours == along.label_bytes_per_token == 0
    assert along.duration.teacher_hours > 0
    distilled = cocomix.plan("gpt2-tiny-kd", **SMALL)
    assert distilled.is_teacher_online
    assert distilled.cost.labels == 0 < distilled.cost.targets
    assert distilled.equal_flops is None


def test_a_finished_run_and_its_dataset_can_be_planned(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(tiny.teacher), "--teacher", str(tiny.teacher), "--device", "cpu", "--peak-tflops", "0.1"]
    assert main(["plan", *words, "--memory-gb", "8", "--tokens", "2M", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["vocab_size"], found["context_length"], found["num_tokens"]) == (300, 16, 2_000_000)
    assert found["student"]["hidden_size"] == 16
    assert found["equal_ntp"] == {"parameters": None, "flops": None}
    assert found["memory_bytes_per_device"]["available"] == 8e9
    assert found["duration"]["peak_flops"] == 1e11


def test_the_table_says_what_does_not_fit() -> None:
    text = show_plan(PlanConfig(vocab_size=300, context_length=16, device="A100 40gb", memory_gb=0.001))
    assert "does NOT fit in 1.0" in text
    assert "a100-40gb" in text
    assert "mixer none" in text


def test_labels_say_how_many_concepts_and_what_they_cost(tiny: Tiny) -> None:
    student = find_recipe("gpt2-tiny-cocomix").config().student
    sizes: dict[str, Any] = {"vocab_size": 300, "context_length": 16, **SMALL}
    shape = sizes | {"num_tokens": 10**6}
    given = cocomix.plan("gpt2-tiny-cocomix", num_concepts=32, **shape)
    labelled = cocomix.plan("gpt2-tiny-cocomix", labels=tiny.concepts, **shape)
    run = cocomix.make_plan(
        PlanConfig(run=TrainConfig(student=student, labels=tiny.concepts, num_tokens=10**6), **sizes)
    )
    for plan in (labelled, run):
        assert plan.num_concepts == 32
        assert (plan.equal_parameters, plan.equal_flops) == (given.equal_parameters, given.equal_flops)
        manifest = json.loads((tiny.concepts / "manifest.json").read_text())
        assert plan.cost.labels == manifest["facts"]["flops_per_token"]
        assert plan.teacher_name == "that of the stored labels or targets"
        # Labels are computed once a window, and the run sees its windows many times.
        assert plan.num_stored_tokens == 16 * manifest["settings"]["num_windows"] < 10**6
        assert plan.as_dict()["label_bytes"] == 8 * plan.num_stored_tokens
        share = plan.num_stored_tokens / 10**6
        hours = 10**6 * plan.cost.labels / (2 * known_devices()["a100"].float32_flops * 0.4) / 3600
        assert plan.duration.labels_hours == pytest.approx(share * hours)
    assert given.teacher_name == "gpt2 of 2 blocks, width 64 (assumed; give --teacher)"
    assert given.as_dict()["teacher"]["name"] == given.teacher_name


def test_stored_targets_are_drawn_before_training() -> None:
    along = cocomix.plan("gpt2-tiny-kd", **SMALL)
    config = PlanConfig(
        run=TrainConfig(distillation=cocomix.DistillationConfig(weight=0.1, targets=Path("not-there-yet"))),
        vocab_size=300,
        context_length=16,
        **SMALL,
    )
    stored = cocomix.make_plan(config)
    assert along.cost.targets > 0 == along.cost.stored_targets
    assert stored.cost.stored_targets > 0 == stored.cost.targets
    assert not stored.is_teacher_online
    assert stored.duration.targets_hours > 0 == stored.duration.teacher_hours
    assert stored.target_bytes_per_token == 16 * 2 + 4
    assert stored.teacher_name == "GPT-2 124M (assumed; give --teacher)"
    text = show_plan(config)
    assert "draws, before it" in text
    assert "runs along" not in text


@pytest.mark.parametrize("end", [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_plan_list_and_run_count_the_same_for_regression(tiny: Tiny, tmp_path: Path, end: float) -> None:
    regression = HiddenRegressionConfig(weight=0.1, layer=0, end=end)
    inputs = {"data": tiny.data, "teacher": tiny.teacher, "hidden_regression": regression, "num_tokens": 256}
    plan = cocomix.plan("gpt2-tiny-hidden-regression", **inputs, **SMALL)
    run = cocomix.recipe("gpt2-tiny-hidden-regression", output=tmp_path / "r", **inputs)
    facts = cocomix.train(dataclasses.replace(run, num_evaluations=1)).facts
    assert facts["train_flops_per_token"] == plan.flops["algorithmic"].training
    assert facts["teacher_flops"] == 256 * plan.cost.teacher
    row = recipe_row(find_recipe("gpt2-tiny-hidden-regression"))
    alone = cocomix.plan("gpt2-tiny-hidden-regression", **SMALL)
    assert (row.train_flops_per_token, row.teacher_flops_per_token) == (
        alone.flops["algorithmic"].training,
        alone.cost.teacher,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "h1000"}, r"'h1000'.*h100\b"),
        ({"device": "cpu"}, r"'cpu'.*--peak-tflops.*--memory-gb"),
        ({"devices": 3}, r"batch_size.*8.*3"),
        ({"devices": 0}, r"devices.*0.*1"),
        ({"tokens": "200X"}, r"--tokens.*'200X'.*64M"),
        ({"utilisation": 0.0}, r"utilisation.*0\.0"),
        ({"peak_tflops": -1.0}, r"peak_tflops.*-1\.0"),
        ({"teacher": Path("/nowhere")}, r"--teacher.*/nowhere"),
        ({"token": "1B"}, r"'token'.*tokens"),
    ],
)
def test_what_is_wrong_is_one_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        cocomix.plan("gpt2-tiny-cocomix", **({"device": "h100"} | options))


def test_what_is_not_known_is_asked_for() -> None:
    with pytest.raises(CocomixError, match=r"--data.*--vocab-size"):
        cocomix.make_plan(PlanConfig())
    student = cocomix.StudentConfig(mixer=ConceptConfig())
    with pytest.raises(CocomixError, match=r"--student.num-concepts.*--labels"):
        cocomix.make_plan(PlanConfig(run=TrainConfig(student=student), vocab_size=300, context_length=16))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("200B", 200 * 10**9),
        ("1.5T", 15 * 10**11),
        ("64M", 64 * 10**6),
        ("64m", 64 * 10**6),
        ("2e9", 2 * 10**9),
        ("20_000", 20_000),
        ("20,000", 20_000),
        (" 5 ", 5),
        (".5k", 500),
        ("3 B", 3 * 10**9),
        ("1", 1),
    ],
)
def test_counts_are_read(text: str, value: int) -> None:
    assert parse_count(text, "--tokens") == value


@pytest.mark.parametrize("text", ["", "B", "-1", "0", "0.1", "1BB", "nan", "inf", "1e", "one", "1e400", "."])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(CocomixError, match="--tokens"):
        parse_count(text, "--tokens")
