"""What a plan says of activations is what real passes keep."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cocomix.base.ledger import Ledger
from cocomix.data.token_dataset import TokenDataset
from cocomix.mixers.config import ConceptConfig
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.tools.plan.memory import Precision, device_memory, peak_bytes, saved_bytes
from cocomix.training.config import StudentConfig, TrainConfig
from cocomix.training.recipes import find_recipe
from cocomix.training.sizes import SIZES
from cocomix.training.students import build_student, num_learning_parameters, settled
from tests.conftest import Tiny

SIZE = SIZES["small"]
T = SIZE.context_length


def run(variant: str) -> TrainConfig:
    return find_recipe(f"gpt2-small-{variant}").config()


def model(variant: str) -> CoCoMixForCausalLM:
    return build_student(run(variant), SIZE, run(variant).student.mixer).train()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["ntp", "cocomix", "add", "mix-only"])
def test_tensors_without_numbers_keep_what_real_ones_keep(variant: str, precision: Precision) -> None:
    num_labels = 0 if variant in ("ntp", "mix-only") else 4
    real = saved_bytes(model(variant), 2, T, precision, num_labels)
    with FakeTensorMode():
        planned = saved_bytes(model(variant), 2, T, precision, num_labels)
    assert planned == real
    assert all(block >= given > 0 for block, given in zip(real.blocks, real.inputs, strict=True))


@pytest.mark.parametrize("variant", ["ntp", "cocomix"])
def test_the_peak_without_numbers_is_the_peak_of_a_real_step(variant: str) -> None:
    num_labels, B = 4 if variant == "cocomix" else 0, SIZE.batch_size
    real = peak_bytes(model(variant), B, T, "float32", num_labels)
    memory = device_memory(run(variant), SIZE, SIZE.num_concepts, 1, 1, B, teacher=0)
    planned = memory.activations + memory.temporaries
    for peak, expected in zip(real, (planned, planned + memory.gradients), strict=True):
        print(f"{variant}: real peak over planned {peak / expected:.4f}")
        # Operations that are one kernel in reality may be several without numbers, and the reverse.
        assert peak == pytest.approx(expected, rel=0.1)
    assert memory.gradients < memory.weights  # in a single pass they are never all there beside the activations


def test_what_is_frozen_takes_weights_alone(tiny: Tiny) -> None:
    data, mixer = TokenDataset(tiny.data), ConceptConfig(num_concepts=32, num_active_concepts=4)
    planned = {}
    for learning in ("mixer", "all"):
        student = StudentConfig(pretrained=tiny.teacher, train=learning, mixer=mixer)  # type: ignore[arg-type]
        config = settled(TrainConfig(student=student))
        memory = planned[learning] = device_memory(config, data, 32, 1, 1, 4, teacher=0)
        real = build_student(config, data, mixer).train()
        num_learning = num_learning_parameters(real.parameters())
        assert memory.weights == 4 * sum(p.numel() for p in real.parameters())
        assert (memory.gradients, memory.moments) == (4 * num_learning, 8 * num_learning)
        assert (
            memory.activations
            == saved_bytes(real, 8, 16, "float32", 4).total - saved_bytes(real, 4, 16, "float32", 4).total
        )
        peak, _ = peak_bytes(real, 4, 16, "float32", 4)
        assert peak == pytest.approx(memory.activations + memory.temporaries, rel=0.1)
    # Above the mixer, a block whose weights are frozen keeps no inputs of its matrix products.
    assert planned["mixer"].activations < planned["all"].activations


def test_the_peak_is_that_of_the_tensors_alive() -> None:
    """Against what the process holds, as a tensor of known size shows."""
    with Ledger() as ledger:
        kept = torch.zeros(1000)
        for _ in range(3):
            torch.zeros(2000)  # freed each time
        view = kept[10:].view(-1)
    assert ledger.peak_excluding([]) == 4 * 3000
    assert ledger.peak_excluding([view]) == 4 * 2000
