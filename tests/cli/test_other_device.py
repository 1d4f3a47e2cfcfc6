"""Nothing strays to the processor when models are elsewhere: shapes and devices alone, on a device that does not exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import AttributionConfig, CoCoMixForCausalLM, ConceptExtractor, SparseAutoencoder, SparseAutoencoderConfig
from cocomix.data.token_dataset import TokenDataset, Windows
from cocomix.evaluation import loss, probes
from cocomix.labels.distillation_targets import draw
from cocomix.mixers.edits import concept_edits
from cocomix.sae.model import row_products
from cocomix.sae.update import Encoded
from cocomix.steering.activations import ActivationRecorder
from cocomix.steering.steer import Steer
from cocomix.tools.inspect import effects, occurrences

V, T, C, D = 100, 16, 64, 32


class Text:
    """Some windows, as a dataset gives them: on the processor."""

    path, vocab_size, context_length, num_windows = "text", V, T, 4

    def windows(self, windows: Any) -> Windows:
        return Windows(torch.zeros(len(windows), T, dtype=torch.long), None)

    def batches(self, *_: Any, **__: Any) -> Iterator[Windows]:
        yield from (self.windows(range(2)), self.windows(range(2)))


def moved(module: nn.Module, device: torch.device) -> None:
    """Give the module weights of the same shapes elsewhere."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                elsewhere = torch.empty(weight.shape, dtype=weight.dtype, device=device)
                part._parameters[name] = nn.Parameter(elsewhere, requires_grad=weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def work(device: torch.device, fake: FakeTensorMode) -> dict[str, Callable[[], torch.device]]:
    """What commands do with models, by name; each returns where its result is, and is called in `fake`."""

    def decoder() -> GPT2LMHeadModel:
        shape = GPT2Config(n_embd=D, n_layer=2, n_head=2, vocab_size=V, bos_token_id=1, eos_token_id=1)
        shape._attn_implementation = "eager"  # which fused kernel there is depends on the device
        return GPT2LMHeadModel(shape).eval()

    sae, trained = (SparseAutoencoder(SparseAutoencoderConfig(D, C, 8)) for _ in range(2))
    teacher, student = decoder(), CoCoMixForCausalLM.from_backbone(decoder(), num_concepts=C, layer=0)
    sae.requires_grad_(False)
    teacher.requires_grad_(False)
    with fake:
        for model in (sae, trained, teacher, student):
            moved(model, device)
    text = cast(TokenDataset, Text())
    ids = lambda: torch.zeros(2, T, dtype=torch.long, device=device)  # noqa: E731
    rows = lambda: torch.zeros(2, D, device=device)  # noqa: E731

    def scored(**settings: Any) -> torch.device:
        return ConceptExtractor(teacher, sae, 0, AttributionConfig(**settings)).scored(ids()).scores.device

    def probed(edit: Any) -> torch.device:
        extractor = ConceptExtractor(teacher, sae, 0) if isinstance(edit, probes.Oracle) else None
        return probes._window_losses(student, text, None, edit, extractor).device

    def steered(mode: str) -> torch.device:
        edit = Steer([{3: 1.0}], mode, num_concepts=C, directions=torch.zeros(C, D) if mode == "toward" else None)
        # A tensor made of numbers keeps them, and would be moved for real.
        edit.concepts, edit.strengths = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1)
        edit.shifts = torch.zeros(1, 1, D) if mode == "toward" else None
        with concept_edits(student, edit):
            return student(ids()).logits.device

    def rebuilt() -> torch.device:
        encoded = Encoded(trained, rows())
        choice = encoded.best(4)
        return trained.sum_rows(choice.indices, encoded.values(choice), choice.offsets).device

    return {
        "labels": scored,
        "attribution": lambda: scored(criterion="attribution"),
        "all pre-activations": lambda: scored(criterion="attribution", value="pre_activation"),
        "exact values": lambda: row_products(sae.encoder_weight, ids()[:, :4], rows()).device,
        "draws": lambda: (
            draw(torch.zeros(3, V, device=device), torch.zeros(3, 4, dtype=torch.float64, device=device))[0].device
        ),
        "dictionary in training": rebuilt,
        "loss": lambda: loss._loss_sum(student, text.windows(range(2)).to(device)).device,
        "training loss": lambda: student(ids(), labels=ids(), return_logits=False).loss.device,
        "concepts": lambda: (
            occurrences._predict(student, text.windows(range(2)).to(device), ActivationRecorder(C, device))[0].device
        ),
        **{
            f"probe {type(edit).__name__}": lambda edit=edit: probed(edit)
            for edit in (probes.Zero(), probes.ShuffleBatch(), probes.ShufflePosition(), probes.Oracle())
        },
        **{f"steer {mode}": lambda mode=mode: steered(mode) for mode in ("set", "scale", "scale_logits", "toward")},
        "direct effects, cpu": lambda: (
            effects.direct_effects(student.adapter, student.concept_mixer.compress_weight, torch.arange(V), 5)[
                0
            ].promoted.device
        ),
        "nearest, cpu": lambda: effects.nearest_concepts(student.concept_mixer.compress_weight.detach(), 5)[0].device,
    }


@pytest.mark.slow
@pytest.mark.unchecked_shapes  # the device is made up for the whole process
def test_every_tensor_is_where_the_models_are() -> None:
    registration = pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices made in Python")
    registration._setup_privateuseone_for_python_backend("elsewhere")
    device = torch.device("elsewhere", 0)
    fake = FakeTensorMode(allow_non_fake_inputs=False)
    for name, run in work(device, fake).items():
        with fake:
            found = run()
        assert found.type == ("cpu" if name.endswith("cpu") else device.type), name
