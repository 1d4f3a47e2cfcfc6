"""A view as a Python program that does the same, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cocomix.studio.links import ViewState
from cocomix.studio.model import StudioModel

CONCEPTS_PER_TOKEN = 8


def as_python(model: StudioModel, state: ViewState, edits: Mapping[int, float]) -> str:
    """A program that continues the prompt as the page does, under the same edits."""
    sampling = f"do_sample=True, temperature={state.temperature:g}, top_k=0" if state.temperature else "do_sample=False"
    generate = "output = model.generate(**prompt, **options)"
    unit = ', unit="usual"' if model.unit == "usual" and state.mode in ("add", "set") else ""
    names = ", ".join(f"{concept}: {model.name_of(concept)}" for concept in edits)
    steered = [
        f"with cocomix.steer(model, {dict(edits)}, mode={state.mode!r}{unit}):  # {names}",
        f"    {generate}",
    ]
    lines = [
        "import cocomix",
        "import torch",
        "from transformers import AutoTokenizer",
        "",
        f"path = {str(model.path)!r}",
        "model, tokenizer = cocomix.load_causal_lm(path), AutoTokenizer.from_pretrained(path)",
        f'prompt = tokenizer({state.prompt!r}, add_special_tokens=False, return_tensors="pt")',
        f"options = dict(max_new_tokens={state.tokens}, pad_token_id=tokenizer.eos_token_id, {sampling})",
        f"torch.manual_seed({state.seed})",
        *(steered if edits else [generate]),
        "print(tokenizer.decode(output[0, prompt.input_ids.shape[1] :]))",
    ]
    return "\n".join(lines) + "\n"


def as_json(model: StudioModel, state: ViewState, edits: Mapping[int, float], continuations: Mapping[str, str]) -> str:
    """All that the view shows: the prompt with its concepts, the edits, the next tokens and the continuations."""
    reading = model.read(state.prompt)
    tokens = [
        {"token": piece, "concepts": [vars(entry) for entry in reading.at(position)[:CONCEPTS_PER_TOKEN]]}
        for position, piece in enumerate(reading.pieces)
    ]
    view: dict[str, Any] = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "prompt": state.prompt,
        "tokens": tokens,
        "mode": state.mode,
        "unit": model.unit,
        "edits": [
            {"concept": concept, "name": model.name_of(concept), "strength": strength}
            for concept, strength in edits.items()
        ],
        "num_tokens": state.tokens,
        "temperature": state.temperature,
        "seed": state.seed,
        "next_tokens": [vars(token) for token in model.next_tokens(state.prompt, edits, state.mode)],
        "continuations": dict(continuations),
        "link": "/?" + state.query(),
    }
    return json.dumps(view, ensure_ascii=False, indent=2) + "\n"
