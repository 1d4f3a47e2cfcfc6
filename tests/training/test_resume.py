"""Whatever interrupts a run, it continues as if nothing had happened: the same bits, the same lines."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from torch import multiprocessing as processes

from cocomix import CocomixError, train
from cocomix.base import artifacts
from cocomix.base.stopping import Stopped
from cocomix.cli.main import main
from tests.conftest import Tiny
from tests.training.helpers import config, equal_weights, full_disk, in_step, terminate, untimed


class KilledError(Exception):
    """Stands for a kill at a chosen step."""


def kill() -> None:
    raise KilledError


# All objectives at once are interrupted in test_objective_runs.py.
@pytest.mark.parametrize(
    "kind", ["ntp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("cocomix", "kd", "hidden", "pause"))]
)
def test_stopped_killed_and_continued_equals_undisturbed(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    # Few windows, so that the run crosses the end of an epoch; accumulation, so that a step has several passes.
    settings: dict[str, object] = {"num_windows": 30, "micro_batch_size": 4}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(tiny, whole, kind, **settings))
    with (
        in_step(4, terminate),
        pytest.raises(Stopped, match="step 5 of 20"),
    ):
        train(config(tiny, parts, kind, **settings))
    assert (parts / "checkpoints" / "step-000000005").exists()
    with in_step(11, kill), pytest.raises(KilledError):
        train(config(tiny, parts, kind, **settings))
    # The last word is not written: it is as if the run had been killed before it.
    with mock.patch.object(artifacts, "finish", side_effect=KilledError), pytest.raises(KilledError):
        train(config(tiny, parts, kind, **settings))
    train(config(tiny, parts, kind, **settings))
    assert equal_weights(whole, parts)
    assert untimed(whole) == untimed(parts)
    assert sorted(path.name for path in whole.iterdir()) == sorted(path.name for path in parts.iterdir())


@pytest.mark.slow
def test_three_kills_at_random_moments(tiny: Tiny, tmp_path: Path) -> None:
    settings: dict[str, object] = {"num_tokens": 6400, "checkpoint_every_steps": 2, "num_evaluations": 5}
    started = time.monotonic()
    train(config(tiny, tmp_path / "whole", **settings))
    seconds = time.monotonic() - started
    rng = random.Random(0)
    for _ in range(3):
        process = processes.get_context("fork").Process(
            target=train, args=(config(tiny, tmp_path / "killed", **settings),)
        )
        process.start()
        process.join(timeout=rng.uniform(0.1, 0.4) * seconds)
        assert process.is_alive(), "it was too fast to be killed: make the run longer"
        process.kill()
        process.join()
    train(config(tiny, tmp_path / "killed", **settings))
    assert equal_weights(tmp_path / "whole", tmp_path / "killed")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "killed")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_have_their_exit_codes(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    argv = ["train", "--data", str(tiny.data), "--output", str(tmp_path / "run"), "--num-tokens", "2560"]
    argv += ["--student.hidden-size", "16", "--student.num-layers", "2", "--student.num-heads", "2"]
    argv += ["--num-evaluations", "1", "--max-validation-windows", "8"]
    with in_step(2, lambda: signal.raise_signal(number)):
        assert main(argv) == code
    assert "stopped after step 3 of 20, and saved; the same command continues from there" in capfd.readouterr().err
    assert main(argv) == 0
    assert "at step 3 of 20" in capfd.readouterr().err


def test_a_second_ctrl_c_does_not_wait(tiny: Tiny, tmp_path: Path) -> None:
    def insist() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with in_step(2, insist), pytest.raises(KeyboardInterrupt) as interrupted:
        train(config(tiny, tmp_path, "ntp"))
    assert not isinstance(interrupted.value, Stopped)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_full_disk_leaves_the_checkpoint_before(tiny: Tiny, tmp_path: Path) -> None:
    train(config(tiny, tmp_path / "whole"))
    with full_disk(after=1), pytest.raises(CocomixError, match=r"step-000000006.*No space left"):
        train(config(tiny, tmp_path / "full"))
    assert [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()] == ["step-000000003"]
    train(config(tiny, tmp_path / "full"))
    assert equal_weights(tmp_path / "whole", tmp_path / "full")


def interrupted(tiny: Tiny, output: Path, step: int = 7, **settings: object) -> Path:
    """A run that was killed, with a checkpoint two steps before."""
    with in_step(step, kill), pytest.raises(KilledError):
        train(config(tiny, output, "ntp", **settings))
    return output


def test_a_checkpoint_of_another_run_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    run, other = interrupted(tiny, tmp_path / "run"), interrupted(tiny, tmp_path / "other", seed=9)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    with pytest.raises(CocomixError, match=r"step-000000006.*other settings"):
        train(config(tiny, run, "ntp"))


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted"])
def test_metrics_damaged_before_the_checkpoint_are_refused(tiny: Tiny, tmp_path: Path, damage: str) -> None:
    metrics = interrupted(tiny, tmp_path, step=17) / "metrics.jsonl"
    content = bytearray(metrics.read_bytes())
    content[20] ^= 1
    metrics.write_bytes(content if damage == "flipped" else content[:20])
    if damage == "deleted":
        metrics.unlink()
    with pytest.raises(CocomixError, match=r"metrics\.jsonl.*checkpoint"):
        train(config(tiny, tmp_path, "ntp"))


@pytest.mark.parametrize(
    ("damage", "step", "checkpoint_every_steps"),
    [(Path.unlink, 13, 100), (lambda path: path.write_text("{}\n"), 13, 3), (Path.unlink, 1, 2)],
)
def test_metrics_damaged_while_the_run_works_are_written_again(
    tiny: Tiny, tmp_path: Path, damage: Callable[[Path], object], step: int, checkpoint_every_steps: int
) -> None:
    settings: dict[str, object] = {"checkpoint_every_steps": checkpoint_every_steps}
    train(config(tiny, tmp_path / "whole", "ntp", **settings))
    with in_step(step, lambda: damage(tmp_path / "damaged" / "metrics.jsonl")):
        train(config(tiny, tmp_path / "damaged", "ntp", **settings))
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "damaged")


@pytest.mark.parametrize("checkpoint_every_steps", [3, 100])
def test_a_run_whose_folder_is_deleted_ends_in_one_sentence(
    tiny: Tiny, tmp_path: Path, checkpoint_every_steps: int
) -> None:
    settings: dict[str, object] = {"checkpoint_every_steps": checkpoint_every_steps}
    with (
        in_step(7, lambda: shutil.rmtree(tmp_path / "run")),
        pytest.raises(CocomixError, match=r"run was deleted while"),
    ):
        train(config(tiny, tmp_path / "run", "ntp", **settings))
    assert not (tmp_path / "run").exists()


def test_checkpoints_kept(tiny: Tiny, tmp_path: Path) -> None:
    with in_step(17, kill), pytest.raises(KilledError):
        train(config(tiny, tmp_path, keep=3))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        f"step-{step:09d}" for step in (9, 12, 15)
    ]


def test_a_pass_may_be_cut_otherwise_after_a_stop(tiny: Tiny, tmp_path: Path) -> None:
    with in_step(5, kill), pytest.raises(KilledError):
        train(config(tiny, tmp_path))
    assert train(config(tiny, tmp_path, micro_batch_size=2)).facts["num_steps"] == 20
