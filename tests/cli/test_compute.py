"""`--precision` and `--device`: the same two options in every command that runs a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix import (
    AttributionConfig,
    ComputeConfig,
    ConceptDataset,
    EvalConfig,
    ExtractConfig,
    ParallelConfig,
    TokenDataset,
    TrainConfig,
    evaluate,
    extract,
    train,
)
from cocomix.base import devices
from cocomix.base.devices import Machine, chosen_precision
from cocomix.cli.main import main
from cocomix.cli.options import parse
from cocomix.modeling.loading import load_causal_lm
from cocomix.studio.model import StudioModel
from cocomix.studio.runs import NamedFolder
from tests.cli.test_mistakes import config_class, enough
from tests.conftest import CONCEPT, Tiny

RUN_MODELS = (
    *("train", "train-sae", "extract", "distill-targets", "eval", "inspect", "steer-eval", "generate"),
    "studio",
)
BFLOAT16 = ComputeConfig(precision="bfloat16", device="cpu")


@pytest.mark.parametrize("command", RUN_MODELS)
def test_every_command_takes_both_options(
    command: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = enough(tiny, tmp_path / "out")[command]
    config = parse(config_class(command), "x", "", [*options, "--precision", "bfloat16", "--device", "cpu"])
    compute = config.parallel if command == "train" else config.compute
    assert (compute.precision, compute.device) == ("bfloat16", "cpu")
    for option, value in (("--precision", "float16"), ("--device", "gpu")):
        with pytest.raises(SystemExit) as stop:
            main([command, *options, option, value])
        assert stop.value.code == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("cocomix.studio.command.find_runs", lambda _: None)
    capsys.readouterr()
    assert main([command, *options, "--device", "cuda"]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "no CUDA device" in said[0]
    assert not (tmp_path / "out").exists()


def test_a_plan_takes_the_precision_and_has_a_device_of_its_own() -> None:
    options = ["--recipe", "gpt2-tiny-ntp", "--precision", "bfloat16", "--device", "a100"]
    config = parse(config_class("plan"), "x", "", options)
    assert (config.run.parallel.precision, config.run.parallel.device, config.device) == ("bfloat16", "auto", "a100")


@pytest.mark.parametrize(("speed", "expected"), [(3.0, "bfloat16"), (0.5, "float32")])
def test_auto_takes_what_the_processor_multiplies_faster(
    speed: float, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(devices, "bfloat16_speed", lambda *size: measured.append(size) or speed)
    cpu = torch.device("cpu")
    assert chosen_precision("auto", cpu, lambda: (10**6, 768), tmp_path) == expected
    assert measured == [(devices.MAX_ROWS, 768)]
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    assert f"auto: {expected}" in said
    assert chosen_precision("bfloat16", cpu, lambda: (1, 1)) == "bfloat16"
    assert len(measured) == 1


def test_auto_measures_within_moments() -> None:
    assert devices.bfloat16_speed(8, 16) > 0


def test_auto_keeps_the_precision_that_a_folder_was_begun_in(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labels(precision: Any, name: str) -> dict[str, Any]:
        compute = ComputeConfig(precision=precision, device="cpu")
        config = ExtractConfig(
            teacher=tiny.teacher, sae=tiny.sae, data=tiny.data, output=tmp_path / name, num_windows=4, compute=compute
        )
        return extract(config).settings

    monkeypatch.setattr(devices, "bfloat16_speed", lambda *_: 2.0)
    settings = labels("auto", "first")
    assert settings["precision"] == "bfloat16"  # what it was made in, never `auto`
    assert "precision" not in labels("float32", "second")  # as in earlier versions
    monkeypatch.setattr(devices, "bfloat16_speed", lambda *_: 0.5)
    assert labels("auto", "first") == settings


def test_a_model_in_bfloat16_gives_the_numbers_of_autocast(tiny: Tiny) -> None:
    machine, ids = Machine(precision="bfloat16"), TokenDataset(tiny.data).input_ids(range(3))
    plain, placed = load_causal_lm(tiny.teacher), load_causal_lm(tiny.teacher, machine)
    with torch.no_grad(), machine.products():
        logits = placed(ids).logits
        assert torch.equal(plain(ids).logits, logits)
    assert logits.dtype == torch.bfloat16
    assert placed.dtype == torch.float32  # of the embeddings, and so of the residual stream


@pytest.mark.parametrize("criterion", ["activation_value", "attribution"])
def test_labels_in_bfloat16_are_those_of_float32_but_for_near_ties(criterion: Any, tiny: Tiny, tmp_path: Path) -> None:
    data, labels = TokenDataset(tiny.data), []
    for compute in (ComputeConfig(device="cpu"), BFLOAT16):
        output = tmp_path / compute.precision
        config = ExtractConfig(
            teacher=tiny.teacher,
            sae=tiny.sae,
            data=tiny.data,
            output=output,
            num_windows=64,
            attribution=AttributionConfig(criterion),
            compute=compute,
        )
        extract(config)
        labels.append(ConceptDataset(output, data).labels(range(64)))
        extract(ExtractConfig(**vars(config) | {"verify": True}))
    plain, rounded = labels
    is_same = (plain.unsqueeze(-1) == rounded.unsqueeze(-2)).any(-1)
    share = float(is_same.float().mean())
    print(criterion, share)
    assert 0.9 < share < 1


@pytest.mark.slow
def test_a_run_stores_what_auto_took(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "bfloat16_speed", lambda *_: 2.0)
    parallel = ParallelConfig(precision="auto", device="cpu")
    manifest = train(
        TrainConfig(data=tiny.data, output=tmp_path / "run", num_tokens=16, batch_size=1, parallel=parallel)
    )
    assert manifest.settings["precision"] == "bfloat16"
    assert "precision: bfloat16" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.slow
def test_evaluation_in_bfloat16_is_close_to_float32(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    parallel = ParallelConfig(precision="bfloat16", device="cpu")
    train(
        TrainConfig(
            data=tiny.data, output=run, labels=tiny.concepts, student=CONCEPT, num_tokens=4096, parallel=parallel
        )
    )
    results = [
        evaluate(
            EvalConfig(
                model=run,
                data=tiny.data,
                output=tmp_path / compute.precision,
                probes=True,
                teacher=tiny.teacher,
                sae=tiny.sae,
                max_windows=20,
                compute=compute,
            )
        )
        for compute in (ComputeConfig(device="cpu"), BFLOAT16)
    ]
    plain, rounded = results
    assert plain["validation_loss"] != rounded["validation_loss"]
    assert math.isclose(plain["validation_loss"], rounded["validation_loss"], rel_tol=0.01)
    for name, probe in plain["probes"].items():
        assert math.isclose(probe["loss"], rounded["probes"][name]["loss"], rel_tol=0.02), name


@pytest.mark.slow
def test_every_command_runs_in_bfloat16(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, options = tmp_path / "train", enough(tiny, tmp_path)
    few: dict[str, list[str]] = {
        "train": ["--labels", str(tiny.concepts), "--student.mixer", "concept", "--student.num-active-concepts", "4"],
        "train-sae": ["--layer", "0", "--num-tokens", "512", "--batch-size", "16", "--num-counted-tokens", "0"],
        "distill-targets": ["--num-windows", "4"],
        "inspect": ["--max-windows", "4", "--num-measured", "2", "--num-probe-windows", "2"],
        "steer-eval": [
            "--num-concepts",
            "2",
            "--num-prompts",
            "10",
            "--num-prompt-tokens",
            "4",
            "--num-new-tokens",
            "4",
        ],
        "generate": ["--steer", "3=2", "--mode", "set", "--max-new-tokens", "2"],
    }
    few["train"] += ["--num-tokens", "256", "--student.hidden-size", "16", "--student.num-layers", "2"]
    few["train-sae"] += ["--max-validation-windows", "4", "--num-latents", "32", "--k", "4"]
    few["inspect"] += ["--teacher", str(tiny.teacher), "--sae", str(tiny.sae)]
    few["steer-eval"] += ["--num-windows", "8", "--strengths", "0.2"]
    for command, further in few.items():
        words = [command, *options[command], *further, "--precision", "bfloat16", "--device", "cpu"]
        if "--output" in words:
            words += ["--output", str(tmp_path / command)]
        if "--model" in words:
            words += ["--model", str(run)]
        assert main(words) == 0, (command, capsys.readouterr().err)
    live = ["--teacher", str(tiny.teacher), "--sae", str(tiny.sae), *few["train"][2:]]
    words = ["train", *options["train"], *live, "--precision", "bfloat16", "--output", str(tmp_path / "live")]
    assert main([*words, "--device", "cpu"]) == 0, capsys.readouterr().err
    model = StudioModel(NamedFolder("run", run), compute=BFLOAT16)
    assert {token.before != token.after for token in model.next_tokens("def", {3: 50.0}, "set")} == {True}
