"""The example on a pretrained decoder, whole, at toy size: two ranks train, one goes on."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from benchmarks import smollm2

from cocomix import TrainConfig, train
from cocomix.base.artifacts import read_json
from cocomix.base.stopping import Stopped
from cocomix.cli.main import main
from cocomix.cli.options import parse
from tests.conftest import Tiny, write_corpus
from tests.training.helpers import in_step, on_ranks, terminate


@pytest.mark.slow
def test_the_example_from_text_to_steered_pairs(tiny: Tiny, tmp_path: Path) -> None:
    validation = write_corpus(tmp_path / "validation.jsonl", seed=1)
    texts = {"text": [tiny.corpus], "validation-text": [validation], "task-data": []}
    work, output = tmp_path / "work", tmp_path / "result.json"
    commands = smollm2.stages(smollm2.SIZES["toy"], str(tiny.teacher), work, texts)
    for name in ("data", "sae", "labels"):
        assert main(commands[name]) == 0

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
    assert result["costs"].keys() == commands.keys() - {"data", "sae", "labels"}  # which were there
    assert [card["concept"] for card in result["cards"]] == [1, 2]
    assert {pair["concept"] for pair in result["pairs"]} <= {1, 2}
    assert all(pair["plain"] and pair["steered"] for pair in result["pairs"])
    for name in smollm2.STUDENTS:
        assert 0 < result["evaluations"][name]["validation_loss"] < 20
