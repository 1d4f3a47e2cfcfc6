"""What only an accelerator shows: its kernels against the CPU's, compiled blocks, resuming, FSDP2, labels, generation.

`make gpu` runs these with COCOMIX_TEST_DEVICE=cuda; with `cpu` they are rehearsed where there is none.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.attention import SDPBackend, sdpa_kernel

from cocomix import AttributionConfig, CoCoMixForCausalLM, ConceptExtractor, ParallelConfig, SparseAutoencoder, train
from cocomix.base.stopping import Stopped
from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.teacher import load_teacher
from cocomix.objectives.base import Batch, Surroundings
from cocomix.objectives.config import NextTokenConfig
from cocomix.tools.bench.generate import Sequence
from cocomix.tools.bench.train import TrainShape, draw, loss_of, student
from cocomix.training import engine
from cocomix.training.deferred import DeferredWeights
from cocomix.training.students import build_student, with_num_concepts
from cocomix.training.trainable import TrainableModule, gradient_norms
from tests.conftest import Tiny
from tests.training.helpers import config, in_step, terminate, untimed, weights

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

#: Heads as wide as flash kernels want them, and windows of several of their tiles.
SHAPE = TrainShape(
    width=128, num_blocks=3, num_heads=2, layer=0, vocab_size=512, num_concepts=256, context=256, batch=2
)


@pytest.fixture
def device() -> torch.device:
    name = os.environ.get("COCOMIX_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return torch.device(name)


def on(device: torch.device, **settings: object) -> dict[str, ParallelConfig]:
    return {"parallel": ParallelConfig(device=device.type, **settings)}  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("kind", ["ntp", "cocomix", "kd"])
def test_losses_equal_the_cpus(
    tiny: Tiny, tmp_path: Path, device: torch.device, kind: str, precision: str, tolerance: float
) -> None:
    """Twenty steps in float32 on the CPU, and in either precision on the device; bfloat16 has 8 bits."""
    train(config(tiny, tmp_path / "cpu", kind, **on(torch.device("cpu"))))
    train(config(tiny, tmp_path / "device", kind, **on(device, precision=precision)))
    found, expected = untimed(tmp_path / "device"), untimed(tmp_path / "cpu")
    for line, wanted in zip(found, expected, strict=True):
        losses = {name: value for name, value in wanted.items() if name.endswith("loss")}
        assert {name: line[name] for name in losses} == pytest.approx(losses, rel=tolerance), line["step"]


@pytest.mark.parametrize("has_concepts", [False, True])
def test_fused_attention_takes_every_block(device: torch.device, has_concepts: bool) -> None:
    """Flash kernels take all blocks but one: in the last above an interleaving mixer only concept positions ask, which is a
    mask that flash refuses and the other fused kernel takes. Loss and gradients are those of plain products."""
    shape, found = SHAPE, []
    fused = [SDPBackend.FLASH_ATTENTION, *has_concepts * [SDPBackend.EFFICIENT_ATTENTION]]
    model = student(shape, has_concepts=has_concepts).to(device)
    batch = draw(shape, 0)
    batch = type(batch)(batch.ids.to(device), batch.labels.to(device))
    for backends in ([SDPBackend.MATH], fused):
        with sdpa_kernel(backends), torch.autocast(device.type, torch.bfloat16):
            loss, _ = loss_of(model, batch)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        found.append(torch.stack([loss.detach(), norm]))
        model.zero_grad()
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02)


@pytest.mark.unchecked_shapes
def test_flex_attention_gives_the_same_logits(device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("flex attention is compiled for the device")
    model = student(SHAPE).to(device).eval()
    ids = draw(SHAPE, 0).ids.to(device)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        model.backbone.set_attn_implementation("flex_attention")
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.unchecked_shapes
def test_compiled_blocks_compile_once(tiny: Tiny, tmp_path: Path, device: torch.device) -> None:
    """As many graphs after ten steps as after two, and the same losses as without."""
    counts = []
    for num_steps in (2, 10):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        run = config(
            tiny,
            tmp_path / f"{num_steps}",
            num_tokens=128 * num_steps,
            num_evaluations=1,
            **on(device, compile=True),
        )
        train(run)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < counts[0] == counts[1]
    train(config(tiny, tmp_path / "plain", num_tokens=1280, num_evaluations=1, **on(device)))
    found, expected = (untimed(tmp_path / name)[-1]["validation_loss"] for name in ("10", "plain"))
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_resumed_run_ends_as_an_undisturbed_one(tiny: Tiny, tmp_path: Path, device: torch.device) -> None:
    """To the bit on a CPU; some CUDA kernels add in an order of their own."""
    for asynchronous in (False, True):
        parts = config(tiny, tmp_path / f"parts {asynchronous}", **on(device, async_checkpoints=asynchronous))
        with in_step(7, terminate), pytest.raises(Stopped):
            train(parts)
        train(parts)
    train(config(tiny, tmp_path / "whole", **on(device)))
    expected = weights(tmp_path / "whole")
    for asynchronous in (False, True):
        found = weights(tmp_path / f"parts {asynchronous}")
        tolerance = {"rtol": 0.0, "atol": 0.0} if device.type == "cpu" else {"rtol": 1e-3, "atol": 1e-4}
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], **tolerance)


def test_fsdp_on_one_device(tiny: Tiny, tmp_path: Path, device: torch.device) -> None:
    """Groups of shards among one rank, from the meta device: loss and gradient norm of the plain student."""
    run, data = config(tiny, tmp_path / "run"), TokenDataset(tiny.data)
    mixer, batch = with_num_concepts(run, 32), data.windows(range(4)).to(device)
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    distributed.init_process_group(backend, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        deferred, next_token = DeferredWeights(), NextTokenConfig()
        near = Surroundings(16, 2, mixer, teacher=lambda: load_teacher(tiny.teacher))
        objectives = [next_token.implementation()(next_token, near)]
        with deferred:
            sharded = TrainableModule(build_student(run, data, mixer), objectives)
        engine._shard(sharded, deferred, (1, 1), device, None)
        found = []
        for student in (sharded, TrainableModule(build_student(run, data, mixer), objectives).to(device)):
            loss = student(Batch(batch))["lm_loss"]
            loss.backward()
            norm = gradient_norms(student)["gradient_norm_backbone"]
            found.append([float(loss), float(norm)])
    finally:
        distributed.destroy_process_group()
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_labels_are_the_cpus(tiny: Tiny, device: torch.device) -> None:
    """But where two scores nearly tie."""
    ids, labels = TokenDataset(tiny.data).windows(range(32)).input_ids, []
    for place in (torch.device("cpu"), device):
        model = load_teacher(tiny.teacher).to(place)
        sae = SparseAutoencoder.from_pretrained(tiny.sae).to(place)
        extractor = ConceptExtractor(model, sae, 0, AttributionConfig())
        labels.append(extractor(ids.to(place)).cpu())
    assert (labels[0] != labels[1]).float().mean() < 0.01


def test_generation_with_a_cache_gives_the_same_tokens(device: torch.device) -> None:
    model: CoCoMixForCausalLM = student(SHAPE).to(device).eval()
    prompt = draw(SHAPE, 0).ids[:1, :32].to(device)
    sequences = [Sequence(model, prompt, use_cache=use_cache) for use_cache in (True, False)]
    for sequence in sequences:
        for _ in range(16):
            sequence.grow()
    assert torch.equal(sequences[0].ids, sequences[1].ids)
