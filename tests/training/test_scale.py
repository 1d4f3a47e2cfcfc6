"""No rank ever holds a whole student: not when it is built, not when it is trained, not when it is saved."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from benchmarks.rehearsal import Memory
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from cocomix import CocomixError, ParallelConfig, train
from cocomix.base.checkpoints import Checkpoints, write_state
from cocomix.base.ranks import joined_ranks
from cocomix.base.stopping import Stopped
from cocomix.data.token_dataset import TokenDataset
from cocomix.training import trainer
from cocomix.training.config import StudentConfig, TrainConfig
from cocomix.training.deferred import DeferredWeights
from cocomix.training.engine import Engine
from cocomix.training.students import build_student, with_num_concepts
from cocomix.training.trainable import TrainableModule
from tests.conftest import CONCEPT, Tiny
from tests.training.helpers import config, equal_weights, full_disk, in_step, on_ranks, terminate, untimed, weights

SHARDED = ("fsdp", "hsdp")
#: Float32 sums in another order, magnified by 50 steps of AdamW.
ROUNDING = {"rtol": 1e-4, "atol": 2e-4}


def shared(tiny: Tiny, output: Path, kind: str = "cocomix", strategy: str = "ddp", **settings: Any) -> TrainConfig:
    parallel = ParallelConfig(strategy=strategy, async_checkpoints=settings.pop("async_checkpoints", False))  # type: ignore[arg-type]
    return config(tiny, output, kind, **{"parallel": parallel, "num_evaluations": 1} | settings)


def two_nodes() -> None:
    """As torchrun says it to each of two processes on two machines."""
    os.environ["LOCAL_WORLD_SIZE"] = "2"


def group_bytes(model: Any) -> list[int]:
    """Bytes of each group of shards: the blocks, the mixer, the rest."""
    parts = [sum(p.nbytes for p in part.parameters()) for part in (*model.adapter.blocks, model.mixer)]
    return [*parts, sum(p.nbytes for p in model.parameters()) - sum(parts)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_deferred_weights_are_the_same_bits_in_any_order(tiny: Tiny, family: str) -> None:
    """GPT-2 draws some weights again, Gemma sets a row of its embedding to zero, and both tie it to the head."""
    run = TrainConfig(student=StudentConfig(family, hidden_size=16, num_layers=2, num_heads=2, mixer=CONCEPT.mixer))
    data, mixer = TokenDataset(tiny.data), with_num_concepts(run, 32)
    expected, deferred = build_student(run, data, mixer), DeferredWeights()
    with deferred:
        model = build_student(run, data, mixer)
    assert any(p.is_meta for p in model.parameters())
    before = torch.get_rng_state()
    for part in (model.mixer, *reversed(model.adapter.blocks), model):
        deferred.fill(part)
    assert torch.equal(before, torch.get_rng_state())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    found, wanted = (dict(m.named_parameters()) | dict(m.named_buffers()) for m in (model, expected))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_four_ranks_from_the_meta_device_start_as_one(tiny: Tiny, tmp_path: Path) -> None:
    student, data = dataclasses.replace(CONCEPT, num_layers=6), TokenDataset(tiny.data)
    run = config(tiny, tmp_path / "run", student=student)
    mixer = with_num_concepts(run, 32)
    expected = build_student(run, data, mixer)
    groups = group_bytes(expected)

    def work(_rank: int) -> None:
        two_nodes()
        for strategy, num_shares in (("fsdp", 4), ("hsdp", 2)):
            deferred = DeferredWeights()
            with joined_ranks() as ranks, Memory() as memory:
                with deferred:
                    model = build_student(run, data, mixer)
                student = TrainableModule(model, [])
                Engine(student, deferred, ParallelConfig(strategy=strategy), ranks, torch.device("cpu"))  # type: ignore[arg-type]
            # Its share of everything and one group; rows that can't be split evenly take one more.
            assert memory.peak < 1.1 * (sum(groups) / num_shares + max(groups)) < 0.8 * sum(groups)
            parameters = dict(model.named_parameters())
            assert all(isinstance(p, DTensor) for p in parameters.values())
            for name, wanted in expected.named_parameters():
                assert torch.equal(parameters[name].full_tensor(), wanted), name  # type: ignore[attr-defined]

    on_ranks(4, tmp_path, work)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", *SHARDED])
def test_fifty_steps_on_four_ranks_equal_one(tiny: Tiny, tmp_path: Path, strategy: str) -> None:
    settings: dict[str, Any] = {"num_tokens": 128 * 50, "checkpoint_every_steps": 20}
    train(shared(tiny, tmp_path / "one", **settings))

    write = trainer.Trainer._write

    def noted(self: trainer.Trainer) -> Any:
        with Memory() as memory:
            manifest = write(self)
        if strategy != "ddp":
            # Of the file that is written, one tensor at a time.
            assert memory.largest <= max(parameter.nbytes for parameter in self.student.parameters())
        return manifest

    def work(_rank: int) -> None:
        two_nodes()
        with mock.patch.object(trainer, "MAX_FILE_BYTES", 4096), mock.patch.object(trainer.Trainer, "_write", noted):
            train(shared(tiny, tmp_path / "four", strategy=strategy, async_checkpoints=True, **settings))

    on_ranks(4, tmp_path, work)
    one, four = untimed(tmp_path / "one"), untimed(tmp_path / "four")
    assert [line.keys() for line in one] == [line.keys() for line in four]
    for line, expected in zip(four, one, strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5), line["step"]
    # Written as several files with an index, and read like any model.
    index = json.loads((tmp_path / "four" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    assert sorted(index) == sorted(weights(tmp_path / "one"))
    for name, file in index.items():
        with safe_open(tmp_path / "four" / file, framework="pt") as stored:
            torch.testing.assert_close(stored.get_tensor(name), weights(tmp_path / "one")[name], **ROUNDING)
    AutoModelForCausalLM.from_pretrained(tmp_path / "four")
    assert not (tmp_path / "four" / "checkpoints").exists()


@pytest.mark.slow
def test_a_stopped_run_passes_between_strategies(tiny: Tiny, tmp_path: Path) -> None:
    train(shared(tiny, tmp_path / "one"))

    def work(rank: int) -> None:
        two_nodes()
        run = shared(tiny, tmp_path / "run", strategy="hsdp", async_checkpoints=True)
        with in_step(7, terminate if rank == 3 else lambda: None), pytest.raises(Stopped):
            train(run)
        train(shared(tiny, tmp_path / "run", strategy="fsdp"))

    on_ranks(4, tmp_path, work)
    for name, tensor in weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "one")[name], **ROUNDING)


def test_checkpoints_beside_training_are_whole_or_absent(tiny: Tiny, tmp_path: Path) -> None:
    run = shared(tiny, tmp_path / "run", "ntp", async_checkpoints=True)
    train(shared(tiny, tmp_path / "plain", "ntp"))
    with full_disk(after=2), pytest.raises(CocomixError, match=r"step-000000009.*earlier checkpoints are intact"):
        train(run)
    assert [p.name for p in (run.output / "checkpoints").iterdir()] == ["step-000000003", "step-000000006"]
    with in_step(10, terminate), pytest.raises(Stopped, match="step 11"):
        train(run)
    assert (run.output / "checkpoints" / "step-000000011").exists()
    train(run)
    assert equal_weights(run.output, tmp_path / "plain")
    assert untimed(run.output) == untimed(tmp_path / "plain")


def test_a_checkpoint_holds_the_state_it_was_given(tmp_path: Path) -> None:
    """What training does to a tensor while the thread writes does not reach the file."""
    checkpoints, tensor = Checkpoints(tmp_path, {}, in_background=True), torch.zeros(3)

    @contextlib.contextmanager
    def late() -> Iterator[None]:
        def write(*arguments: Any) -> None:
            assert not (tmp_path / "checkpoints").exists()
            tensor.fill_(1.0)
            write_state(*arguments)

        with mock.patch("cocomix.base.checkpoints.write_state", write):
            yield

    with checkpoints.written(), late():
        checkpoints.save(1, {"x": tensor}, {})
        checkpoints.wait()
    stored, found = checkpoints.latest(), torch.full((3,), 2.0)
    assert stored is not None
    stored.read_into({"x": found})
    assert found.tolist() == [0.0, 0.0, 0.0]
