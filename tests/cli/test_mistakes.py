"""Mistakes of every kind on the command line: refused at once, in one sentence, with nothing left behind."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cocomix.base import artifacts
from cocomix.base.errors import MAX_SIZE, CocomixError
from cocomix.cli.main import COMMANDS, main
from cocomix.cli.options import parse
from cocomix.cli.paths import check_paths
from tests.conftest import Tiny

#: Calls `main` for each command line of standard input, and says what came of it and whether torch is loaded by then.
CALLS = """
import contextlib, io, json, sys
from cocomix.cli.main import main
results = []
for argv in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = main(argv)
        except SystemExit as stop:
            code = stop.code
    results.append([code, said.getvalue(), "torch" in sys.modules])
print(json.dumps(results))
"""
NOWHERE = "/nowhere/at/all"


def concept_model(folder: Path) -> str:
    """As much of a model with concepts as is read before torch is loaded."""
    folder.mkdir(exist_ok=True)
    settings = {"model_type": "cocomix", "mixer": "concept", "num_concepts": 8}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / artifacts.CONCEPT_METADATA_NAMES[0]).write_text('{"3": "imports"}')
    (folder / artifacts.CONCEPT_METADATA_NAMES[2]).touch()
    return str(folder)


def enough(tiny: Tiny, output: Path) -> dict[str, list[str]]:
    """For each command, options that let it begin."""
    model = ["--model", concept_model(output.with_name("model"))]
    data, teacher, sae = ["--data", str(tiny.data)], ["--teacher", str(tiny.teacher)], ["--sae", str(tiny.sae)]
    out = ["--output", str(output)]
    return {
        "run": ["demo-smoke", *out],
        "prepare": [*out, "--text", str(tiny.corpus)],
        "train-sae": [*teacher, *data, *out, "--layer", "0"],
        "extract": [*teacher, *sae, *data, *out, "--batch-size", "3"],
        "distill-targets": [*teacher, *data, *out],
        "train": [*data, *out],
        "recipes": [],
        "plan": ["--recipe", "gpt2-tiny-ntp"],
        "bench": [],
        "eval": ["--model", str(tiny.teacher), *data, *out],
        "inspect": [*model, *data, *out],
        "compare": [str(tiny.teacher)],
        "generate": [*model, "--prompt", "def"],
        "steer-eval": [*model, *teacher, *sae, *data, *out],
        "studio": [str(tiny.teacher)],
    }


def mistakes(tiny: Tiny, root: Path) -> Iterator[list[str]]:
    """Command lines with one mistake each."""
    file, empty = root / "file", root / "empty"
    file.write_text("")
    empty.mkdir()
    seen: set[str] = set()
    for command, options in enough(tiny, root / "out").items():
        yield [command, *options, "--nonsense", "1"]
        config = config_class(command)
        names = {field.name for field in dataclasses.fields(config)}
        if command == "plan":
            names |= {"data", "labels", "teacher"}
        for name in sorted(names & {"model", "teacher", "sae", "data", "labels", "text", "task_data"}):
            yield [command, *options, f"--{name.replace('_', '-')}", NOWHERE]
        for name in sorted(names & {"model", "teacher", "sae", "data", "labels", "tokenizer"} - seen):
            yield [command, *options, f"--{name}", str(file)]
            yield [command, *options, f"--{name}", str(empty)]
            seen.add(name)
        if "sae" in names:
            yield [command, *options, "--sae", "nowhere"]
            yield [command, *options, "--sae", str(tiny.data)]
        if "tokenizer" in names:
            yield [command, *options, "--tokenizer", "./nowhere"]
            yield [command, *options, "--tokenizer", "nowhere/offline"]
            yield [command, *options, "--text", "*.nowhere"]
            yield [command, *options, "--text", str(empty)]
            yield [command, *options[:2], "--dataset", NOWHERE]
        if command in ("plan", "train"):
            yield [command, *options, "--distillation.weight", "1", "--distillation.targets", str(tiny.data)]
            yield [command, *options, "--student.family", "x"]
        if command in ("eval", "inspect", "steer-eval"):
            probes = ["--probes"] if command == "eval" else []
            yield [command, *options, "--model", str(tiny.teacher), *probes]  # which has no concepts
        if "data" in names:
            yield [command, *options, "--data", str(tiny.concepts)]  # another kind of folder
        if "output" in names:
            yield [command, *options, "--output", str(file)]
            yield [command, *options, "--output", str(file / "below")]
            yield [command, *options, "--output", str(tiny.root)]  # files that are not ours
        if "seed" in names:
            yield [command, *options, "--seed", "many"]
            yield [command, *options, "--seed", str(2**64)]
    yield ["compare", NOWHERE]
    yield ["studio", NOWHERE]
    yield ["studio", str(tiny.teacher), "--port", "70000"]
    train = ["train", *enough(tiny, root / "out")["train"]]
    yield [*train, "--distillation.weight", "1", "--distillation.targets", NOWHERE]
    yield [*train, "--trackers", "nowhere"]
    yield ["bench", "--json", NOWHERE]
    yield ["bench", "--json", str(empty)]
    yield ["generate", *enough(tiny, root / "out")["generate"], "--steer", "7"]
    yield ["generate", *enough(tiny, root / "out")["generate"], "--steer", "8=1"]
    yield ["generate", *enough(tiny, root / "out")["generate"], "--steer", "export=1"]
    yield ["generate", "--model", str(tiny.teacher), "--prompt", "def", "--steer", "7=1"]
    yield ["steer-eval", *enough(tiny, root / "out")["steer-eval"], "--concepts", "7", "8"]
    benchmark = [
        "eval",
        "--model",
        str(tiny.teacher),
        "--output",
        str(root / "out"),
        "--task-data",
        str(empty),
        "--tasks",
    ]
    yield [*benchmark, "x"]
    yield [*benchmark, "piqa"]
    for command in ("train-sae", "extract", "eval", "steer-eval"):
        options = enough(tiny, root / "out")[command]
        both = ["--teacher", str(tiny.teacher), "--sae", str(tiny.sae), "--probes"] if command == "eval" else []
        model = ["--model", concept_model(root / "model")] if command == "eval" else []
        yield [command, *options, *both, *model, "--layer", "99"]
        if command != "train-sae":
            yield [command, *options, *both, *model, "--layer", "1"]  # the dictionary was trained on another
    bare = concept_model(root / "bare")
    (root / "bare" / artifacts.CONCEPT_METADATA_NAMES[2]).unlink()
    yield ["generate", "--model", bare, "--prompt", "def", "--steer", "3=1", "--mode", "toward"]
    yield ["train", "--recipe", "x"]
    yield ["plan", "--recipe", "gpt2-tiny-ntp", "--device", "x"]
    yield ["trian"]


@pytest.mark.parametrize("command", [name for name in COMMANDS if COMMANDS[name].writes and name != "compare"])
def test_a_folder_of_other_settings_is_refused_before_any_work(command: str, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config, kind = parse(config_class(command), "", "", enough(tiny, out)[command]), COMMANDS[command].writes
    own = config.settings()
    out.mkdir()
    (out / "file").touch()

    def check(**changed: Any) -> None:
        header = {"kind": kind, "format_version": artifacts.FORMAT_VERSION, "settings": own | changed}
        artifacts.write_json(out / artifacts.SETTINGS_NAME, artifacts.sealed(header))
        check_paths(config, kind)

    check(input="a fingerprint")  # of which nothing is known yet
    name = min(own)
    with pytest.raises(CocomixError, match=f"made with other settings \\({name}"):
        check(**{name: "other"})
    check_paths(parse(config_class(command), "", "", [*enough(tiny, out)[command], "--overwrite"]), kind)


def config_class(command: str) -> Any:
    module, _, name = COMMANDS[command].config.rpartition(".")
    return getattr(importlib.import_module(f"cocomix.{module}"), name)


def test_every_mistake_is_refused_before_torch_is_loaded(tiny: Tiny, tmp_path: Path) -> None:
    argvs = list(mistakes(tiny, tmp_path))
    assert {argv[0] for argv in argvs} >= COMMANDS.keys()
    done = subprocess.run(
        [sys.executable, "-c", CALLS], input=json.dumps(argvs), capture_output=True, text=True, check=True
    )
    for argv, (code, said, loaded) in zip(argvs, json.loads(done.stdout), strict=True):
        assert code in (1, 2), (argv, said)
        assert "Traceback" not in said, (argv, said)
        assert not loaded, argv
        assert len(said.strip().splitlines()) == 1 or code == 2, (argv, said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "empty", "file", "model"]


def integers(config: Any, prefix: str = "") -> Iterator[str]:
    """The options that take a whole number, nested ones included."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        nested = [hint, *typing.get_args(hint)]
        if any(each is int for each in nested):
            yield f"--{prefix}{field.name}".replace("_", "-")
        elif dataclasses.is_dataclass(hint) and field.name != "run":
            yield from integers(hint, "" if field.metadata.get("flat") else f"{prefix}{field.name}.")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("recipes", "compare", "studio")])
def test_numbers_of_more_than_64_bits_are_one_sentence(
    command: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = sorted(set(integers(config_class(command))) - {"--layer"})  # a block that the teacher does not have
    for option in options:
        try:
            code = main([command, *enough(tiny, tmp_path / "out")[command], option, str(2**70)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr().err
        assert code in (1, 2), (option, said)
        assert "unexpected" not in said, (option, said)
        assert not (tmp_path / "out").exists(), option


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_seeds_have_bounds(seed: int, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, options in enough(tiny, tmp_path / "out").items():
        if "seed" in {field.name for field in dataclasses.fields(config_class(command))}:
            with pytest.raises(SystemExit) as stop:
                main([command, *options, "--seed", str(seed)])
            assert stop.value.code == 2
            assert "seed" in capsys.readouterr().err


def test_a_vocabulary_for_which_no_machine_has_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--output", str(tmp_path / "out"), "--vocab-size", str(10**11)])
    assert f"{MAX_SIZE:,}" in capsys.readouterr().err


def test_a_student_larger_than_the_machine_is_refused_before_it_is_built(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--student.hidden-size", str(2**16), "--student.num-layers", "40"]
    assert main(["train", "--data", str(tiny.data), "--output", str(tmp_path / "out"), *sizes]) == 1
    assert "parameters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["a\0b", "a\udc80b"])
def test_text_that_is_none_is_refused(
    text: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text('output: "a\\0b"\n')
    for argv in (
        ["generate", "--model", str(tiny.teacher), "--prompt", text],
        ["generate", "--model", text, "--prompt", "x"],
        ["prepare", "--output", str(tmp_path / text)],
        ["prepare", "--config", text],
        ["prepare", "--config", str(tmp_path / "run.yaml")],
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
        assert "'" in capsys.readouterr().err


def test_a_name_that_is_too_long_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "x" * 300
    for argv in (["prepare", "--output", str(tmp_path / name)], ["prepare", "--config", name], ["compare", f"/{name}"]):
        assert main(argv) == 1
        said = capsys.readouterr().err
        assert name in said
        assert len(said.splitlines()) == 1
