"""Files of experiments: what is wired, and what is refused before anything runs."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cocomix import CocomixError, RunConfig, plan, run
from cocomix.cli.main import main
from cocomix.experiment.stages import FILES, Experiment, read_experiment
from tests.conftest import Tiny
from tests.experiment.files import DEMO, write

SHIPPED = sorted(file.stem for file in FILES.glob("*.yaml"))


def read(file: Path | str, **options: Any) -> Experiment:
    return read_experiment(RunConfig(str(file), **options))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("demo", "paper-69m") else pytest.mark.slow) for name in SHIPPED]
)
def test_shipped_files_are_whole(name: str, tmp_path: Path) -> None:
    experiment = read(name, output=tmp_path)
    stages = {stage.name: stage for stage in experiment.stages}
    assert {"data", "concepts", "ntp", "cocomix", "evaluation/ntp", "inspection", "report"} <= stages.keys()
    assert stages["cocomix"].config.labels == tmp_path / "concepts"
    assert stages["inspection"].config.labels == tmp_path / "concepts"
    assert stages["cocomix"].config.student.mixer.has_concepts
    if name.startswith("paper"):
        assert stages["cocomix"].launch == "torchrun --standalone --nproc-per-node 8"
        assert stages["recommended"].config.labels == tmp_path / "concepts-recommended"
        assert stages["kd"].config.teacher == Path("openai-community/gpt2")
        assert f"--recipe=gpt2-{name.removeprefix('paper-')}-kd" in stages["kd"].arguments
    else:
        settings = stages["cocomix"].config
        assert (settings.student.mixer.mixing, settings.concept_loss.weight) == ("add", 1.0)
        assert stages["ntp"].config.num_tokens < stages["teacher"].config.num_tokens


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(DEMO), **changes}


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "section": (changed(studnets={}), "there is no section 'studnets'; perhaps students"),
    "option": (changed(data={"vocab_sise": 300}), "there is no option data.vocab_sise; perhaps vocab_size"),
    "shared option": (
        changed(train={"student": {"num_layrs": 2}}),
        r"no option train.student.num_layrs; perhaps student.num_layers",
    ),
    "value": (
        changed(students={"x": {"student": {"hidden_size": "many"}}}),
        r"students.x.student.hidden_size is 'many'; it takes a whole number",
    ),
    "shared value": (changed(seed="many"), "yaml: seed is 'many'"),
    "recipe": (changed(students={"x": {"recipe": "gpt2-69m-ntq"}}), "students.x: .*perhaps gpt2-69m-ntp"),
    "contradiction": (changed(labels={"batch_size": -3}), "labels: batch_size is -3"),
    "name": (changed(students={"sae": {}}), "students.sae would have the folder of another stage"),
    "text": (changed(text=["./nowhere.txt"]), "mistake.yaml: text names nowhere.txt, which does not exist"),
    "missing": (changed(sae="./nowhere.pt"), "sae names ./nowhere.pt, which does not exist"),
    "benchmarks": (
        {"data": {}, "students": {"x": {}}, "evaluation": {"tasks": ["lambada"], "task_data": "./nowhere"}},
        "nowhere is not a folder",
    ),
    "base": (changed(base="dema"), "no experiment of that name; perhaps demo"),
    "no options": (changed(report="yes"), "report holds 'yes'; it takes options"),
    "no labels": (changed(students={"cocomix": {"student": {"mixer": "none"}}}), "student"),
    "attribution": (changed(labels={"attribution": {}}), "students.NAME.attribution"),
    "report": ({"data": {}, "students": {"ntp": {}}, "report": {}}, "cocomix is missing; add it, or leave"),
    "plan": (changed(plan={"devise": "h100"}), "no option plan.devise; perhaps device"),
}


#: The others are cases of these.
FAST = ("section", "shared option", "value", "missing", "report")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MISTAKES]
)
def test_a_mistake_is_one_sentence_with_its_place(name: str, tmp_path: Path) -> None:
    values, expected = MISTAKES[name]
    with pytest.raises(CocomixError, match=expected):
        read(write(tmp_path / "mistake.yaml", values), output=tmp_path / "out").check()
    assert not (tmp_path / "out").exists()


def test_parts_of_an_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "tiny.yaml", DEMO)
    run(RunConfig(str(file), output=tmp_path / "out", start="ntp", dry_run=True))
    shown = capsys.readouterr().err
    assert "student: NTP" in shown
    assert "text to tokens" not in shown
    assert not (tmp_path / "out").exists()
    with pytest.raises(CocomixError, match=r"--only ntq: .* perhaps ntp"):
        run(RunConfig(str(file), output=tmp_path / "out", only=("ntq",)))


@pytest.mark.slow
def test_a_stage_alone(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write(tmp_path / "tiny.yaml", DEMO), tmp_path / "out"
    assert main(["run", str(file), "--output", str(out), "--text", str(tiny.corpus), "--only", "data"]) == 0
    assert [path.name for path in sorted(out.iterdir())] == ["data", "experiment.yaml"]
    assert yaml.safe_load((out / "experiment.yaml").read_text())["text"] == [str(tiny.corpus)]
    assert main(["run", str(file), "--output", str(tiny.root), "--only", "data"]) == 1
    assert "not an experiment's" in capsys.readouterr().err


@pytest.mark.slow
def test_costs_are_those_of_plans(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The tables of docs/reproduce.md are these."""
    # The plan is shown, and then what is still to be downloaded.
    assert main(["run", "paper-69m", "--output", str(tmp_path / "out"), "--dry-run"]) == 1
    shown = capsys.readouterr().err.replace("\u202f", " ")
    planned = plan("gpt2-69m-cocomix", devices=8, device="h100", precision="bfloat16")
    minutes, seconds = divmod(round(3600 * planned.duration.student_hours), 60)
    assert f"CoCoMix (paper): {minutes} min {seconds:02d} s" in shown
    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
    hours, rest = re.search(r"planned: (\d+) h \d+ min .*, ([\d,]+) dollars", shown).groups()  # type: ignore[union-attr]
    assert re.search(rf"^\| 69M .*\| {hours} h .*\| {rest} \|", page, re.MULTILINE), page


def test_a_file_is_printed_to_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--print", "demo"]) == 0
    printed = capsys.readouterr().out
    assert printed == (FILES / "demo.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        printed.replace("output: runs/demo", f"output: {tmp_path}/mine").replace("text: null", "text: a.txt")
    )
    assert read(mine).stages[0].config.text == (Path("a.txt"),)


def test_the_example_of_the_page_is_whole(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")
    (tmp_path / "example.yaml").write_text(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    stages = {stage.name: stage.config for stage in read(tmp_path / "example.yaml", output=tmp_path).stages}
    assert list(stages) == ["data", "sae", "concepts", "upcycled", "evaluation/upcycled", "inspection"]
    assert stages["upcycled"].student.pretrained == stages["sae"].teacher == stages["inspection"].teacher
    assert stages["upcycled"].labels == stages["inspection"].labels == tmp_path / "concepts"
    assert (stages["sae"].layer, stages["upcycled"].layer, stages["upcycled"].student.mixer.layer) == (14, None, 14)


def test_the_command_of_version_0_1_still_runs_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--size", "smoke", "--output", str(tmp_path / "demo"), "--dry-run"]) == 0
    assert "demo-smoke.yaml: 10 stages" in capsys.readouterr().err
