"""Names of the supported families of decoders; this file loads no torch."""

from __future__ import annotations

from cocomix.base.errors import CocomixError, nearest

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
