"""A model that can't read the data, or has damaged weights, is refused in one sentence before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cocomix import CoCoMixConfig, CoCoMixForCausalLM, PrepareConfig, prepare
from cocomix.cli.main import main
from tests.conftest import Tiny
from tests.modeling.helpers import backbone_config, foreign

#: Every command that runs a model on data, and its options: the pipeline, the model, its dictionary.
COMMANDS: dict[str, Callable[[Tiny, Path, Path], list[object]]] = {
    "train-sae": lambda tiny, model, sae: ["--teacher", model, "--data", tiny.data, "--layer", 0, "--num-tokens", 64],
    "extract": lambda tiny, model, sae: ["--teacher", model, "--data", tiny.data, "--sae", sae, "--layer", 0],
    "distill-targets": lambda tiny, model, sae: ["--teacher", model, "--data", tiny.data],
    "train": lambda tiny, model, sae: ["--teacher", model, "--data", tiny.data, "--distillation.weight", 1],
    "eval": lambda tiny, model, sae: ["--model", model, "--data", tiny.data],
}
WITH_CONCEPTS: dict[str, Callable[[Tiny, Path, Path], list[object]]] = {
    "inspect": lambda tiny, model, sae: ["--model", model, "--data", tiny.data],
    "steer-eval": lambda tiny, model, sae: [
        *("--model", model, "--teacher", tiny.teacher, "--data", tiny.data, "--sae", sae, "--layer", 0),
        *("--num-prompt-tokens", 2, "--num-new-tokens", 2, "--num-prompts", 10),
    ],
}


def with_concepts(family: str, folder: Path) -> Path:
    """A small student with the pipeline's vocabulary and number of concepts."""
    backbone = backbone_config(family, vocab_size=300)
    config = CoCoMixConfig(backbone_config=backbone, layer=0, num_concepts=32, num_active_concepts=5)
    CoCoMixForCausalLM(config).save_pretrained(folder)
    return folder


def failure(
    command: str,
    options: list[object],
    capsys: pytest.CaptureFixture[str],
    output: Path | None,
) -> str:
    """The sentence with which a command refuses; it leaves nothing behind."""
    argv = [command, *map(str, options), *(["--output", str(output)] if output else [])]
    assert main(argv) == 1
    assert output is None or not output.exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


def set_weights(folder: Path, name: str, change: Callable[[torch.Tensor], None]) -> None:
    """Change one tensor, or all whose name holds `name`, of a model's weights."""
    tensors = load_file(folder / "model.safetensors")
    for key, tensor in tensors.items():
        if name in key:
            change(tensor)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("command", [*COMMANDS, "generate", *WITH_CONCEPTS])
def test_a_weight_that_is_not_finite_is_named(
    command: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = foreign(tiny.sae, tmp_path / "sae")
    if command in WITH_CONCEPTS:
        with_concepts("llama", tmp_path / "model")
        name = "backbone.model.layers.1.mlp.down_proj.weight"
    else:
        foreign(tiny.teacher, tmp_path / "model")
        name = "model.layers.1.mlp.down_proj.weight"
    set_weights(tmp_path / "model", name, lambda tensor: tensor[3, 5].fill_(float("nan")))
    if command == "generate":
        error = failure(command, ["--model", tmp_path / "model", "--prompt", "def"], capsys, None)
    else:
        options = (COMMANDS | WITH_CONCEPTS)[command](tiny, tmp_path / "model", sae)
        error = failure(command, options, capsys, tmp_path / "out")
    assert str(tmp_path / "model") in error
    assert name in error


@pytest.mark.parametrize("command", ["train-sae", "extract"])
@pytest.mark.parametrize("value", [0.0, 1e38])
def test_hidden_states_that_say_nothing_are_refused(
    command: str, value: float, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = foreign(tiny.sae, tmp_path / "sae")
    model = foreign(tiny.teacher, tmp_path / "model")
    set_weights(model, "", lambda tensor: tensor.fill_(value))
    error = failure(command, COMMANDS[command](tiny, model, sae), capsys, tmp_path / "out")
    assert "after block 0" in error


@pytest.mark.parametrize("command", ["train-sae", "extract"])
def test_hidden_states_too_large_to_be_squared_are_refused(
    command: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = foreign(tiny.sae, tmp_path / "sae")
    model = with_context("llama", 16, tmp_path / "model")
    set_weights(model, "layers.0.mlp.down_proj", lambda tensor: tensor.fill_(3e38))
    error = failure(command, COMMANDS[command](tiny, model, sae), capsys, tmp_path / "out")
    assert f"{model} after block 0" in error


@pytest.mark.slow
@pytest.mark.parametrize("command", WITH_CONCEPTS)
def test_concepts_that_change_nothing_are_refused(
    command: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = foreign(tiny.sae, tmp_path / "sae")
    model = with_concepts("llama", tmp_path / "model")
    set_weights(model, "", torch.Tensor.zero_)
    error = failure(command, WITH_CONCEPTS[command](tiny, model, sae), capsys, tmp_path / "out")
    assert "no directions" in error


@pytest.mark.parametrize("command", [*COMMANDS, "attribution", "distillation", "generate"])
def test_logits_that_are_not_finite_are_refused(
    command: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = foreign(tiny.teacher, tmp_path / "model")
    set_weights(model, "model.norm", lambda tensor: tensor.fill_(3e38))
    set_weights(model, "embed", lambda tensor: tensor.mul_(1e3))
    if command == "generate":
        error = failure(command, ["--model", model, "--prompt", "def"], capsys, None)
    else:
        sae = foreign(tiny.sae, tmp_path / "sae")
        options = COMMANDS.get(command) or COMMANDS["extract"]
        given = options(tiny, model, sae)
        if command == "attribution":
            command, given = "extract", [*given, "--attribution.criterion", "attribution"]
        elif command == "distillation":
            command = "train"
            given = ["--data", tiny.data, "--teacher", model, "--distillation.weight", 1, "--num_tokens", 512]
        error = failure(command, given, capsys, tmp_path / "out")
        assert str(model) in error
    assert "not finite" in error


def with_context(family: str, context: int, folder: Path) -> Path:
    """A small decoder with the pipeline's vocabulary."""
    config = backbone_config(family, vocab_size=300, max_position_embeddings=context)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_windows_longer_than_learned_positions_are_refused(
    command: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = foreign(tiny.sae, tmp_path / "sae")
    model = with_context("gpt2", 8, tmp_path / "model")
    error = failure(command, COMMANDS[command](tiny, model, sae), capsys, tmp_path / "out")
    assert all(text in error for text in (str(model), str(tiny.data), "8", "16"))


def test_windows_beyond_rotary_positions_are_warned_about(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for context, num_warnings in ((8, 1), (16, 0)):
        model = with_context("llama", context, tmp_path / str(context))
        argv = ["eval", "--model", model, "--data", tiny.data, "--output", tmp_path / f"out-{context}"]
        assert main(list(map(str, argv))) == 0
        error = capsys.readouterr().err
        assert error.count("warning: the context of") == num_warnings
        assert error.count("make shorter ones with `cocomix prepare --context-length`") == num_warnings


@pytest.mark.parametrize("command", WITH_CONCEPTS)
def test_students_too_have_a_context(
    command: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = foreign(tiny.sae, tmp_path / "sae")
    data, tokenizer = tmp_path / "data", str(tiny.teacher)
    prepare(PrepareConfig(data, (tiny.corpus,), tokenizer=tokenizer, context_length=128, validation_fraction=0.2))
    model = with_concepts("gpt2", tmp_path / "model")
    options = [data if option == tiny.data else option for option in WITH_CONCEPTS[command](tiny, model, sae)]
    assert "context" in failure(command, options, capsys, tmp_path / "out")
