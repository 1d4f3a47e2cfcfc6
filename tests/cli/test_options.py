"""Recipe, YAML file and options: each over the one before, and one sentence for what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from cocomix import PrepareConfig, TrainConfig, train
from cocomix.base.errors import CocomixError
from cocomix.cli.main import main
from cocomix.cli.options import parse
from cocomix.training.sizes import SIZES
from tests.conftest import STUDENT, Tiny

PATHS = ["--data", "d", "--output", "o"]


def parse_train(*words: str) -> TrainConfig:
    config = parse(TrainConfig, "cocomix train", "Train.", [*PATHS, *words])
    assert type(config) is TrainConfig
    return config


def write(folder: Path, text: str) -> str:
    (folder / "run.yaml").write_text(text)
    return str(folder / "run.yaml")


def test_the_command_line_is_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = write(tmp_path, "recipe: gpt2-tiny-pause\nseed: 5\nnum_tokens: 100\noptimizer: {beta1: 0.8, beta2: 0.9}\n")
    config = parse_train("--config", file, "--num-tokens", "200", "--optimizer.beta2=0.7")
    assert (config.num_tokens, config.seed, config.student.mixer) == (200, 5, "pause")
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.8, 0.7)
    assert config.optimizer.warmup_fraction == SIZES["tiny"].warmup_fraction
    assert config.student.hidden_size == SIZES["tiny"].hidden_size
    other = parse_train("--config", file, "--recipe=gpt2-small-ntp")
    assert (other.student.mixer, other.student.hidden_size, other.seed) == ("none", 136, 5)


def test_values_of_every_kind(tmp_path: Path) -> None:
    text = "optimizer: {learning_rate: 3e-4, weight_decay: 0}\ntrackers: [wandb]\nlabels: null\nteacher: t\n"
    text += "distillation: {weight: 1}\nparallel: {compile: yes}\nmicro_batch_size: 4\nstudent: {mixer: none}\n"
    config = parse_train("--config", write(tmp_path, text))
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (3e-4, 0.0)
    assert (config.trackers, config.labels, config.teacher) == (("wandb",), None, Path("t"))
    assert (config.parallel.compile, config.micro_batch_size, config.student.mixer) == (True, 4, "none")


@pytest.mark.parametrize("text", ["2M", "2e6", "2.0e+6", "2_000_000", "'2,000k'"])
def test_token_counts_as_people_write_them(text: str, tmp_path: Path) -> None:
    assert parse_train("--config", write(tmp_path, f"num_tokens: {text}")).num_tokens == 2_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_token: 5", r"run.yaml: there is no option num_token; perhaps num_tokens"),
        ("student: {hiden_size: 5}", r"there is no option student.hiden_size; perhaps student.hidden_size"),
        ("zzz: 1", r"there is no option zzz; there are data, output, labels"),
        ("num_tokens: many", r"num_tokens is 'many'; expected a whole number"),
        ("num_tokens: true", r"num_tokens is True; expected a whole number"),
        ("num_tokens: 1.5", r"num_tokens is 1.5; expected a whole number"),
        ("optimizer: {learning_rate: fast}", r"optimizer.learning_rate is 'fast'; expected a number"),
        ("optimizer: {learning_rate: [1]}", r"optimizer.learning_rate is \[1\]; expected a number"),
        ("optimizer: 5", r"optimizer is 5; expected options as `name: value` below it"),
        ("student: {mixer: pauze}", r"student.mixer is 'pauze'; expected one of concept, pause, none"),
        ("labels: 5", r"labels is 5; expected a path or null"),
        ("trackers: wandb", r"trackers is 'wandb'; expected a list of which each is one of tensorboard, wandb"),
        ("trackers: [x]", r"trackers is \['x'\]; expected a list"),
        ("overwrite: 1", r"overwrite is 1; expected true or false"),
        ("student: {family: 3}", r"expected one of llama, gpt2"),
        ("- 1", r"holds a list; expected options"),
        ("a: [", r"is no YAML: while parsing"),
        ("seed: 1\nseed: 2", r"is no YAML: the key 'seed' is there twice, again in line 2"),
        ("[a]: 1", r"is no YAML: the key \['a'\] in line 1 is no name"),
        ("{a: 1}: 1", r"is no YAML: the key {'a': 1} in line 1 is no name"),
        ("recipe: gpt2-tiny-np", r"there is no recipe 'gpt2-tiny-np'; perhaps gpt2-tiny-ntp"),
        ("batch_size: 0", r"batch_size is 0; it must be at least 1"),
        ("student: {hidden_size: 9}", r"hidden_size 9 is not divisible"),
    ],
)
def test_a_file_that_is_wrong_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=message) as error:
        parse_train("--config", write(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning-rat", "1"], r"^unrecognized options: --learning-rat, 1; perhaps --optimizer.learning-rate, "),
        (["stray"], r"^unrecognized options: stray; see cocomix train --help$"),
        (["--batch-size", "a"], r"^--batch-size: invalid literal for int\(\) with base 10: 'a'; see"),
        (["--num-tokens", "many"], r"^--num-tokens is 'many'; expected a number such as 64M"),
        (["--batch-size"], r"^missing value for argument '--batch-size'"),
        (["--student.mixer", "x"], r"^invalid choice 'x' for argument '--student.mixer'"),
        (["--recipe"], r"^missing value for argument '--recipe'"),
        (["--recipe", "x"], r"^there is no recipe 'x'"),
        (["--config", "/nowhere.yaml"], r"^/nowhere.yaml does not exist; --config takes a YAML file"),
        (["--student.hidden-size", "9"], r"^student: hidden_size 9 is not divisible by twice"),
        (["--batch-size", "0"], r"^batch_size is 0; it must be at least 1$"),
    ],
)
def test_words_that_are_wrong_are_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        parse_train(*words)


@pytest.mark.parametrize("words", [["--num-tokens", "4M"], ["--num-tokens=4M"], ["--num_tokens", "4_000_000"]])
def test_counts_of_tokens_as_people_write_them(words: list[str]) -> None:
    assert parse_train("--data", "d", "--output", "o", *words).num_tokens == 4_000_000


def test_what_is_missing_is_named_and_the_exit_code_is_that_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--recipe", "gpt2-tiny-ntp"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: missing from cocomix train: --data, --output; see cocomix train --help\n"


def test_help_shows_the_recipes_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(TrainConfig, "cocomix train", "Train.", ["--recipe", "gpt2-69m-kd", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Tokens to train on, rounded up to whole steps. (default: 20000000000)" in text
    assert "--recipe NAME" in text
    assert "--config FILE" in text


def test_other_commands_take_a_file_too(tmp_path: Path) -> None:
    config = parse(
        PrepareConfig, "cocomix prepare", "Prepare.", ["--config", write(tmp_path, "output: o\ntext: [a, b]")]
    )
    assert config == PrepareConfig(output=Path("o"), text=(Path("a"), Path("b")))


@dataclass(frozen=True)
class _Plain:
    name: str
    sizes: tuple[int, ...] = ()
    students: dict[str, int] = field(default_factory=dict)


def test_what_writes_nothing_takes_no_file() -> None:
    with pytest.raises(CocomixError, match="unrecognized options: --config"):
        parse(_Plain, "cocomix question", "Ask.", ["--name", "x", "--config", "y"])


def test_a_runs_configuration_is_saved_and_read_back(tiny: Tiny, tmp_path: Path) -> None:
    config = TrainConfig(data=tiny.data, output=tmp_path / "run", student=STUDENT, num_tokens=256, overwrite=True)
    first = train(config)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert "overwrite" not in saved
    assert saved["data"] == str(tiny.data)
    again = parse(TrainConfig, "cocomix train", "Train.", ["--config", str(tmp_path / "run")])
    assert again == TrainConfig(data=tiny.data, output=tmp_path / "run", student=STUDENT, num_tokens=256)
    moved = parse(
        TrainConfig, "cocomix train", "Train.", ["--config", str(tmp_path / "run"), "--output", str(tmp_path / "b")]
    )
    assert train(moved).fingerprint == first.fingerprint  # paths are no part of the content
    (tmp_path / "run" / "config.yaml").write_text("")  # nor is the file checked
    assert train(config.__class__(**{**vars(config), "overwrite": False})) == first
