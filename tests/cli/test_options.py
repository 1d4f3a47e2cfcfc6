"""Recipe, YAML file and options: each over the one before, and one sentence for what is wrong."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cocomix import PrepareConfig, RunConfig, TrainConfig, train
from cocomix.base.errors import CocomixError
from cocomix.cli.main import main
from cocomix.cli.options import parse
from cocomix.experiment.stages import read_experiment
from cocomix.training.recipes import find_recipe
from cocomix.training.sizes import SIZES
from tests.conftest import STUDENT, Tiny

PATHS = ["--data", "d", "--output", "o"]


def parse_train(*argv: str) -> TrainConfig:
    config = parse(TrainConfig, "cocomix train", "Train.", [*PATHS, *argv])
    assert type(config) is TrainConfig
    return config


def write(folder: Path, text: str) -> str:
    (folder / "run.yaml").write_text(text)
    return str(folder / "run.yaml")


def test_the_command_line_is_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = write(tmp_path, "recipe: gpt2-tiny-pause\nseed: 5\nnum_tokens: 100\noptimizer: {beta1: 0.8, beta2: 0.9}\n")
    config = parse_train("--config", file, "--num-tokens", "200", "--optimizer.beta2=0.7")
    assert (config.num_tokens, config.seed, config.student.mixer.mixer) == (200, 5, "pause")
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.8, 0.7)
    assert config.optimizer.warmup_fraction == SIZES["tiny"].warmup_fraction
    assert config.student.hidden_size == SIZES["tiny"].hidden_size
    other = parse_train("--config", file, "--recipe=gpt2-small-ntp")
    assert (other.student.mixer.mixer, other.student.hidden_size, other.seed) == ("none", 136, 5)


def test_values_of_every_kind(tmp_path: Path) -> None:
    text = "optimizer: {learning_rate: 3e-4, weight_decay: 0}\ntrackers: [wandb]\nlabels: null\nteacher: t\n"
    text += "distillation: {weight: 1}\nparallel: {compile: yes}\nmicro_batch_size: 4\nstudent: {mixer: none}\n"
    config = parse_train("--config", write(tmp_path, text))
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (3e-4, 0.0)
    assert (config.trackers, config.labels, config.teacher) == (("wandb",), None, Path("t"))
    assert (config.parallel.compile, config.micro_batch_size, config.student.mixer.mixer) == (True, 4, "none")


def test_merged_keys_are_below_a_mappings_own(tmp_path: Path) -> None:
    config = parse_train("--config", write(tmp_path, "<<: {seed: 5, num_tokens: 100}\nseed: 6"))
    assert (config.seed, config.num_tokens) == (6, 100)


@pytest.mark.parametrize("text", ["2M", "2e6", "2.0e+6", "2_000_000", "'2,000k'"])
def test_token_counts_as_people_write_them(text: str, tmp_path: Path) -> None:
    assert parse_train("--config", write(tmp_path, f"num_tokens: {text}")).num_tokens == 2_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", r"list"),
        ("a: [", r"YAML"),
        ("seed: 1\nseed: 2", r"'seed' .*line 2"),
        ("[a]: 1", r"\['a'\] in line 1"),
        ("{a: 1}: 1", r"{'a': '1'} in line 1"),
        ("recipe: gpt2-tiny-np", r"'gpt2-tiny-np'; perhaps gpt2-tiny-ntp"),
        ("student: {mixer: pauze}", r"'pauze'; perhaps pause"),
        ("batch_size: 0", r"batch_size is 0"),
        ("student: {hidden_size: 9}", r"hidden_size 9"),
        ("a: " + "[" * 5000, r"nested too deeply"),
        ("a: " + "{b: " * 5000, r"nested too deeply"),
        ("a: &a {b: *a}", r"nested too deeply"),
        ("seed: !!timestamp 2020-99-99", r"month"),
        ("seed: !!int " + "9" * 5000, r"thousands of digits"),
        ("seed: " + "9" * 5000, r"run\.yaml: --seed has thousands of digits"),
        ("num_tokens: " + "9" * 5000, r"run\.yaml: --num-tokens has thousands of digits"),
        ("num_tokens: many", r"num-tokens is 'many'"),
    ],
)
def test_a_file_that_is_wrong_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=message) as error:
        parse_train("--config", write(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_token: 5", "run.yaml: there is no option --num-token; perhaps --num-tokens"),
        (
            "student: {hiden_size: 5}",
            "run.yaml: there is no option --student.hiden-size; perhaps --student.hidden-size",
        ),
        ("zzz: 1", "run.yaml: there is no option --zzz; `cocomix train --help-all`"),
        ("batch_size: true", "run.yaml: --batch-size needs a value"),
        ("batch_size: 1.5", "run.yaml: --batch-size is '1.5'; it takes a whole number"),
        ("optimizer: {learning_rate: fast}", "run.yaml: --optimizer.learning-rate is 'fast'; it takes a number"),
        ("optimizer: {learning_rate: [1, 2]}", "'2'"),
        ("optimizer: 5", "run.yaml: there is no option --optimizer"),
        ("seed: 2020-99-99", "run.yaml: --seed is '2020-99-99'; it takes a whole number"),
        ("trackers: [x]", "run.yaml: --trackers is 'x'; choose from tensorboard, wandb, trackio"),
        ("student: {mixer: pause, num_active_concepts: 3, rank: 2}", "run.yaml: there is no option --student.rank"),
    ],
)
def test_an_option_in_a_file_that_is_wrong_is_named_with_its_file(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=re.escape(said)) as error:
        parse_train("--config", write(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num-tokens", "many"], r"--num-tokens is 'many'"),
        (["--student.mixer", "x"], r"no mixer 'x'; choose from none, pause, concept"),
        (["--recipe"], r"--recipe"),
        (["--seed", "9" * 5000], r"^--seed has thousands of digits; give a smaller number"),
        (["--recipe", "x"], r"no recipe 'x'"),
        (["--config", "/nowhere.yaml"], r"/nowhere.yaml"),
        (["--student.hidden-size", "9"], r"hidden_size 9"),
        (["--batch-size", "0"], r"batch_size is 0"),
    ],
)
def test_values_that_are_wrong_are_one_sentence(argv: list[str], message: str) -> None:
    with pytest.raises(CocomixError, match=message):
        parse_train(*argv)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--learning-rat", "1"], "there is no option --learning-rat; perhaps --optimizer.learning-rate"),
        (["--labls=x"], "there is no option --labls; perhaps --labels"),
        (["--mixing", "add", "--labels", "l"], "there is no option --mixing; perhaps --student.mixing"),
        (["stray"], "'stray'"),
        (["--batch-size", "a"], "--batch-size is 'a'; it takes a whole number"),
        (["--batch-size"], "--batch-size needs a value"),
        (["--trackers", "wandbb"], "--trackers is 'wandbb'; perhaps wandb"),
        (["--student.mixing", "add"], "no setting of the mixer 'none'; give labels, or another --student.mixer"),
    ],
)
def test_words_that_are_wrong_are_one_sentence(argv: list[str], said: str) -> None:
    with pytest.raises(CocomixError, match=re.escape(said)) as error:
        parse_train(*argv)
    assert "\n" not in str(error.value)


def test_labels_mean_cocomix_as_recommended() -> None:
    """Without a recipe; one mixer, loss and choice of labels for the command, the recipe and the demo."""
    recommended = find_recipe("gpt2-small-recommended").config()
    demo = read_experiment(RunConfig("demo")).students["cocomix"].run
    for argv in (["--labels", "l"], ["--teacher", "t", "--sae", "s"], ["--student.mixer", "concept", "--labels", "l"]):
        config = parse_train(*argv)
        mixers = (config.student.mixer, demo.student.mixer, recommended.student.mixer)
        assert len({dataclasses.replace(mixer, num_concepts=None) for mixer in mixers}) == 1
        assert config.concept_loss == recommended.concept_loss == demo.concept_loss
        assert config.attribution == recommended.attribution == demo.attribution
    other = parse_train("--labels", "l", "--student.mixing", "interleave", "--concept-loss.weight", "0.1")
    assert (other.student.mixer.mixing, other.concept_loss.weight) == ("interleave", 0.1)  # type: ignore[attr-defined]
    assert parse_train().student.mixer.mixer == "none"
    assert parse_train("--labels", "l", "--recipe", "gpt2-small-cocomix").concept_loss.weight == 0.1
    with pytest.raises(CocomixError, match=r"'none'.* leave them out"):
        parse_train("--labels", "l", "--student.mixer", "none")


@pytest.mark.parametrize(
    ("options", "mixing"),
    [
        (["--labels", "l"], "add"),
        (["--labels", "l", "--recipe", "gpt2-small-ntp", "--student.mixer", "concept"], "add"),
        (["--labels", "l", "--student.start-from-sae", "s"], "interleave"),
        (["--student.mixer", "pause"], "interleave_residual"),
    ],
)
def test_a_pretrained_student_starts_close_to_what_it_was(options: list[str], mixing: str) -> None:
    mixer: Any = parse_train("--student.pretrained", "p", *options).student.mixer
    assert mixer.mixing == mixing


def test_options_of_version_0_1_are_taken(tmp_path: Path) -> None:
    argv = ["--student.mixer", "concept", "--student.insert-layer", "2", "--concept-loss-weight=0.5", "--labels", "l"]
    config = parse_train(*argv, "--concept-loss-schedule", "cosine")
    assert (config.student.mixer.layer, config.concept_loss.weight, config.concept_loss.schedule) == (1, 0.5, "cosine")
    text = "student: {mixer: none, mixing: interleave, insert_layer: 1, num_active_concepts: 32, concept_stride: 1, "
    text += "concept_window: null, concept_groups: null}\nconcept_loss_weight: 0.1\nnum_concepts: null\n"
    config = parse_train("--config", write(tmp_path, text))
    assert config.student.mixer.mixer == "none"
    assert config.concept_loss.weight == 0.1


@pytest.mark.parametrize("argv", [["--num-tokens", "4M"], ["--num-tokens=4M"], ["--num_tokens", "4_000_000"]])
def test_counts_of_tokens_as_people_write_them(argv: list[str]) -> None:
    assert parse_train("--data", "d", "--output", "o", *argv).num_tokens == 4_000_000


def test_what_is_missing_is_named_and_the_exit_code_is_that_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--recipe", "gpt2-tiny-ntp"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "--data" in said
    assert "--output" in said


def test_help_shows_the_recipes_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(TrainConfig, "cocomix train", "Train.", ["--recipe", "gpt2-69m-kd", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Tokens to train on, rounded up to whole steps. (default 20_000_000_000)" in text
    assert "--recipe NAME" in text
    assert "--config FILE" in text
    assert "--attribution.criterion" not in text
    with pytest.raises(SystemExit):
        parse(TrainConfig, "cocomix train", "Train.", ["--student.mixer", "concept", "--help-all"])
    text = capsys.readouterr().out
    assert "--attribution.criterion attribution|activation_value" in text
    assert "--student.num-active-concepts" in text


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
    with pytest.raises(CocomixError, match="no option --config"):
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
