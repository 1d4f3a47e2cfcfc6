"""What is known of decoders without their weights: names of families, numbers of blocks. This file loads no torch."""

from __future__ import annotations

from pathlib import Path

from cocomix.base.errors import CocomixError, nearest
from cocomix.base.formats import counted
from cocomix.base.parsing import parse_json

#: `model_type` of each family, and the names of its well-known models; `register_adapter` adds others.
FAMILIES = {
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
    "llama": "Llama, SmolLM2, TinyLlama",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "olmo2": "OLMo 2",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
}


def known(*families: str) -> dict[str, str]:
    """Some of the families, for an adapter."""
    return {family: FAMILIES[family] for family in families}


def require_family(family: str) -> None:
    """Refuse a student's family that has no adapter."""
    if family not in FAMILIES:
        raise CocomixError(f"student.family is {family!r}, which has no adapter{nearest(family, sorted(FAMILIES))}")


def num_blocks(folder: Path) -> int | None:
    """Number of blocks of a model, from its folder's `config.json`; None if that does not name it in a usual way."""
    file = folder / "config.json"
    config = parse_json(file.read_bytes(), str(file)) if file.is_file() else None
    number = config.get("num_hidden_layers", config.get("n_layer")) if isinstance(config, dict) else None
    return number if type(number) is int else None


def require_layer(layer: int, num_blocks: int) -> None:
    """Refuse a layer that a teacher of so many blocks lacks."""
    if not 0 <= layer < num_blocks:
        raise CocomixError(
            f"layer is {layer}; for a teacher of {counted(num_blocks, 'block')} it must be 0 to {num_blocks - 1}"
        )
