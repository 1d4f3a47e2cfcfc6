"""The examples run as they are, at toy size."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cocomix import ParallelConfig, StudentConfig, TokenDataset, load_causal_lm, steer, train
from cocomix.base.kinds import read_metrics
from cocomix.objectives.config import ConceptLossConfig
from tests.conftest import CONCEPT, Tiny
from tests.training.helpers import config, weights

ROOT = Path(__file__).parent.parent
#: Two nodes of one process each, both on this machine.
SRUN = '#!/bin/bash\nfor node in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & pids+=($!); done\nwait "${pids[@]}"\n'
SCONTROL = "#!/bin/bash\necho localhost\n"
COCOMIX = f'#!/bin/bash\nexec {sys.executable} -m cocomix.cli.main "$@"\n'
TORCHRUN = f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_slurm_script_trains_on_two_nodes(tiny: Tiny, tmp_path: Path) -> None:
    programs = {"srun": SRUN, "scontrol": SCONTROL, "cocomix": COCOMIX, "torchrun": TORCHRUN}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "localhost"}
    environment |= {"RENDEZVOUS_PORT": str(free_port()), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = ["--data", str(tiny.data), "--labels", str(tiny.concepts), "--output", str(tmp_path / "slurm")]
    words += ["--num-tokens", "1024", "--num-evaluations", "1", "--max-validation-windows", "8"]
    words += ["--student.mixing", "interleave", "--concept-loss.weight", "0.1", "--concept-loss.schedule", "constant"]
    words += ["--student.hidden-size", "16", "--student.num-layers", "2"]
    words += ["--student.num-heads", "2", "--student.num-active-concepts", "4", "--parallel.device", "cpu"]
    script = str(ROOT / "examples" / "train.slurm")
    done = subprocess.run(
        ["bash", script, *words], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "slurm")]  # of two processes, one speaks
    train(config(tiny, tmp_path / "one", num_tokens=1024, num_evaluations=1))
    lines, expected = read_metrics(tmp_path / "slurm"), read_metrics(tmp_path / "one")
    assert lines[-1]["validation_loss"] == pytest.approx(expected[-1]["validation_loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["ntp", "cocomix"])
def test_transformers_trainer_trains_the_same_model(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("accelerate")
    from examples import trainer

    parallel = ParallelConfig(device="cpu")
    falling = ConceptLossConfig(weight=0.1, schedule="linear", end=0.8)
    logged = trainer.train(config(tiny, tmp_path / "trainer", kind, parallel=parallel, concept_loss=falling))
    train(config(tiny, tmp_path / "loop", kind, concept_loss=falling))
    assert len(logged) == 20
    ours = {int(line["step"]): line for line in read_metrics(tmp_path / "loop") if "lm_loss" in line}
    assert ours.keys() == {10, 20}
    for step, line in ours.items():
        # Trainer rounds what it logs to four digits, and divides a mean where the loop divides a sum.
        total = line["lm_loss"] + falling.weight_at(step - 1, 20) * line.get("concept_loss", 0.0)
        assert logged[step - 1]["loss"] == pytest.approx(total, abs=2e-4)
        assert logged[step - 1]["grad_norm"] == pytest.approx(line["gradient_norm"], rel=1e-3)
    found, expected = weights(tmp_path / "trainer"), weights(tmp_path / "loop")
    for name, tensor in expected.items():
        # The loop saves a student without a mixer as the plain decoder. The loop clips
        # inside of the optimizer's step, which rounds differently.
        again = found[name if name in found else f"backbone.{name}"]
        torch.testing.assert_close(again, tensor, rtol=1e-4, atol=1e-5)


def test_adapters_learn_with_the_mixer_and_are_saved_loaded_and_merged(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    from examples import lora

    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("of another project")
    student = StudentConfig(pretrained=tiny.teacher, mixer=CONCEPT.mixer.changed(mixing="interleave_residual"))
    settings = config(tiny, tmp_path / "run", student=student, num_tokens=384)
    trained = lora.train(settings)
    ids = TokenDataset(tiny.data, "validation").windows([0, 1]).input_ids
    with torch.no_grad():
        expected = trained(input_ids=ids).logits
        assert torch.equal(lora.load(settings, tmp_path / "run" / "adapter")(input_ids=ids).logits, expected)
        merged = load_causal_lm(tmp_path / "run")
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
        before = lora.student(settings)
        used = int(merged.mixer.compress_weight.norm(dim=-1).argmax())
        with steer(trained, {used: 5.0}, mode="set"):  # a model with adapters is steered as it is
            assert not torch.equal(trained(input_ids=ids).logits, expected)
    assert not torch.equal(merged.mixer.compress_weight, before.mixer.compress_weight)
    own, teacher = merged.backbone.state_dict(), AutoModelForCausalLM.from_pretrained(tiny.teacher).state_dict()
    changed = {name for name, tensor in teacher.items() if not torch.equal(own[name], tensor)}
    assert changed == {name for name in teacher if name.endswith("proj.weight")}
    assert not (tmp_path / "run" / "README.md").exists()
