"""The example on a pretrained decoder, whole, at toy size: two ranks train, one goes on."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from benchmarks import scratch, smollm2

from cocomix import TrainConfig, train
from cocomix.base.artifacts import read_json
from cocomix.base.errors import CocomixError
from cocomix.base.stopping import Stopped
from cocomix.cli.options import parse
from tests.conftest import Tiny, write_corpus
from tests.training.helpers import in_step, on_ranks, terminate


@pytest.mark.slow
def test_the_example_from_text_to_steered_pairs(tiny: Tiny, tmp_path: Path) -> None:
    validation = write_corpus(tmp_path / "validation.jsonl", seed=1)
    texts = {"text": [tiny.corpus], "validation-text": [validation], "task-data": []}
    work, output = tmp_path / "work", tmp_path / "result.json"
    commands = smollm2.stages(smollm2.SIZES["toy"], str(tiny.teacher), work, texts)
    smollm2.run({name: commands[name] for name in ("data", "sae", "labels")}, work)

    def stopped(rank: int) -> None:
        config = parse(TrainConfig, "cocomix train", "", commands["concepts"][1:])
        with in_step(2, terminate if rank else lambda: None), pytest.raises(Stopped):
            train(config)

    on_ranks(2, tmp_path, stopped)
    words = ["smollm2", "--size", "toy", "--model", str(tiny.teacher), "--work", str(work), "--output", str(output)]
    words += ["--text", str(tiny.corpus), "--validation-text", str(validation), "--concepts", "1", "2"]
    with mock.patch("sys.argv", words):
        smollm2.main()
    result = read_json(output)
    assert result["costs"].keys() == commands.keys()
    assert all(cost["minutes"] > 0 and cost["peak_bytes"] > 1e8 for cost in result["costs"].values())
    assert [card["concept"] for card in result["cards"]] == [1, 2]
    assert {pair["concept"] for pair in result["pairs"]} <= {1, 2}
    assert all(pair["plain"] and pair["steered"] for pair in result["pairs"])
    for name in smollm2.STUDENTS:
        assert 0 < result["evaluations"][name]["validation_loss"] < 20
    losses = [result["evaluations"][name]["validation_loss"] for name in ("concepts", "plain")]
    assert result["concepts_minus_plain"]["mean"] == pytest.approx(losses[0] - losses[1], abs=1e-3)


@pytest.mark.slow
def test_students_from_scratch_of_a_foreign_teacher(tiny: Tiny, tmp_path: Path) -> None:
    validation = write_corpus(tmp_path / "validation.jsonl", seed=1)
    output = tmp_path / "result.json"
    words = ["scratch", "--size", "toy", "--model", str(tiny.teacher), "--work", str(tmp_path / "work")]
    words += ["--output", str(output), "--text", str(tiny.corpus), "--validation-text", str(validation)]
    with mock.patch("sys.argv", words):
        scratch.main()
    students = read_json(output)["students"]
    assert students["NTP"]["0"]["teacher_flops"] == 0 < students["CoCoMix (ours)"]["0"]["teacher_flops"]
    assert len({student["0"]["validation_loss"] for student in students.values()}) == len(scratch.STUDENTS)
    (found,) = scratch.blocks(read_json(output)).values()
    assert [line.count("|") for line in found.splitlines()] == [6] * (3 + len(scratch.STUDENTS))


def test_costs_are_those_of_all_tries_and_a_finished_stage_keeps_its_own(tiny: Tiny, tmp_path: Path) -> None:
    work, texts = tmp_path / "work", {"text": [tmp_path / "text.txt"], "validation-text": [], "task-data": []}
    commands = smollm2.stages(smollm2.SIZES["toy"], str(tiny.teacher), work, texts)
    windows = {
        words[words.index("--num-windows") + 1] for words in (commands[n] for n in ("labels", "concepts", "plain"))
    }
    assert windows == {"256"}  # all on the same tokens
    data = {"data": commands["data"]}
    with pytest.raises(CocomixError, match="exit code 1"):
        smollm2.run(data, work)
    (tmp_path / "text.txt").write_bytes(tiny.corpus.read_bytes())
    tried = read_json(work / "costs.json")["data"]
    first = smollm2.run(data, work)
    assert first["data"]["minutes"] > tried["minutes"] > 0
    assert first["data"]["peak_bytes"] > 1e8
    assert smollm2.run(data, work) == first == read_json(work / "costs.json")


def test_the_text_of_the_package_and_what_is_said_without_it(tmp_path: Path) -> None:
    file = tmp_path / "summaries_en-us.json"
    file.write_text(
        '{"Ant": {"title": "Ant", "extract": "An ant is \\"small\\"."}, "Bee": {"extract": "So is a bee."}}'
    )
    with mock.patch.object(smollm2, "packaged", return_value=file):
        path = smollm2.packaged_text(tmp_path / "work")
    assert path.read_text().splitlines() == [r'"An ant is \"small\"."', '"So is a bee."']
    with pytest.raises(SystemExit, match=r"nowhere-at-all.* is missing.*--no-deps nowhere-at-all`.* --text"):
        smollm2.packaged("nowhere-at-all", ".json")
