"""A model and a dictionary of your own: which concepts a text has, and a model that can be steered by them.

    python examples/tutorials/your_model.py MODEL SAE LAYER FILE-OR-FOLDER runs/steerable

The model stays as it is, to the bit. Only the mixer learns, so this needs a fraction of a training from scratch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import cocomix
from cocomix.mixers.config import ConceptConfig


def strongest(model: Path, sae: Path, layer: int, prompt: str) -> list[tuple[str, int, float]]:
    """Tokens of a prompt with the latent that is most active there and its activation; the last one has no label."""
    from transformers import AutoTokenizer

    teacher = cocomix.load_causal_lm(model)
    extractor = cocomix.ConceptExtractor(teacher, cocomix.SparseAutoencoder.from_pretrained(sae), layer=layer)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        found = extractor.scored(ids)  # labels and scores [B, T, A], the largest first
    rows = zip(ids[0], found.labels[0, :, 0].tolist(), found.scores[0, :, 0].tolist(), strict=True)
    return [(tokenizer.decode(token), concept, score) for token, concept, score in rows if concept >= 0]


def main(model: Path, sae: Path, layer: int, text: Path, output: Path, num_tokens: int = 1_000_000) -> Path:
    """Teach a mixer the dictionary's concepts; returns the folder of the model with it."""
    data, labels, steerable = (output / name for name in ("data", "labels", "model"))
    cocomix.prepare(cocomix.PrepareConfig(output=data, text=(text,), tokenizer=str(model)))
    cocomix.extract(cocomix.ExtractConfig(teacher=model, sae=sae, layer=layer, data=data, output=labels))

    # What is added starts as next to nothing, so that at first the model says what it said before.
    mixer = ConceptConfig(mixing="add", layer=layer)
    cocomix.train(
        cocomix.TrainConfig(
            data=data,
            output=steerable,
            labels=labels,
            student=cocomix.StudentConfig(pretrained=model, mixer=mixer, train="mixer"),
            num_tokens=num_tokens,
        )
    )

    # Names, usual activations and directions; then `cocomix studio` on the folder, or `cocomix.steer` in Python.
    cocomix.inspect(
        cocomix.InspectConfig(
            model=steerable, data=data, labels=labels, teacher=model, sae=sae, layer=layer, output=output / "inspection"
        )
    )
    return steerable


if __name__ == "__main__":
    model, sae, layer, text, output = sys.argv[1:]
    for token, concept, activation in strongest(Path(model), Path(sae), int(layer), "An example of a prompt."):
        print(f"{token!r:>12} {concept:>7} {activation:6.2f}")
    print(main(Path(model), Path(sae), int(layer), Path(text), Path(output)))
