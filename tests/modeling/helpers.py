"""Small models for the tests, and the pairs of a family and something else on which they are tested."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from cocomix.base.artifacts import MANIFEST_NAME, SETTINGS_NAME
from cocomix.mixers.config import MIXERS as MIXER_CONFIGS
from cocomix.modeling.backbones import supported_families
from cocomix.modeling.configuration import CoCoMixConfig
from cocomix.modeling.model import CoCoMixForCausalLM

VOCAB_SIZE = 40
NUM_CONCEPTS = 24
FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3_text")
#: The first family of each adapter.
ADAPTERS = tuple({supported_families()[family]: family for family in reversed(FAMILIES)}.values())
SLIDING_WINDOW = 4
MIXERS = (
    ("none", "none"),
    ("concept", "interleave"),
    ("concept", "interleave_residual"),
    ("concept", "add"),
    ("concept", "none"),
    ("pause", "interleave"),
    ("pause", "interleave_residual"),
    ("pause", "add"),
)

#: The most that a mixer does: a concept position after each token.
INTERLEAVED = ("concept", "interleave")


def every_family_with(cases: Sequence[Any], *, adapters_with_all: bool = True) -> list[Any]:
    """Parameters: each family, followed by each case (a tuple is several parameters).

    The fast run has each adapter with all cases (or with two, where a test is slow and others cover the pair), and each other
    family with two: the case `INTERLEAVED`, or else the first, and one of the rest in turn. The whole product is left to the
    tests marked slow.
    """
    always = cases.index(INTERLEAVED) if INTERLEAVED in cases else 0
    rest = [index for index in range(len(cases)) if index != always]
    with_all = ADAPTERS if adapters_with_all else ()
    others = [family for family in FAMILIES if family not in with_all]
    parameters = []
    for family in FAMILIES:
        fast = range(len(cases)) if family in with_all else (always, rest[others.index(family) % len(rest)])
        for index, case in enumerate(cases):
            words = case if isinstance(case, tuple) else (case,)
            parameters.append(pytest.param(family, *words, marks=() if index in fast else pytest.mark.slow))
    return parameters


def backbone_config(family: str, **settings: Any) -> PreTrainedConfig:
    shared: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if family == "gpt2":
        shared |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        shared |= {"intermediate_size": 32, "initializer_range": 0.1}
    if family not in ("gpt2", "gpt_neox"):
        shared |= {"num_key_value_heads": 1}
    if family in ("qwen3", "gemma2", "gemma3_text"):
        shared |= {"head_dim": 8}
    # Windows shorter than the test sequences: on every block, on upper blocks, on every other block.
    if family == "mistral":
        shared |= {"sliding_window": SLIDING_WINDOW}
    elif family == "qwen2":
        shared |= {"sliding_window": SLIDING_WINDOW, "use_sliding_window": True, "max_window_layers": 1}
    elif family.startswith("gemma"):
        shared |= {
            "sliding_window": SLIDING_WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 8,
            "pad_token_id": 0,
        }
    return AutoConfig.for_model(family, **shared | settings)


def student(
    family: str = "llama", mixer: str = "concept", mixing: str = "interleave", **settings: Any
) -> CoCoMixForCausalLM:
    """A small student in evaluation mode, with weights large enough that nothing is lost in rounding."""
    shared = {"layer": 0, "num_concepts": NUM_CONCEPTS, "num_active_concepts": 5, "mixing": mixing}
    own = {field.name for field in dataclasses.fields(MIXER_CONFIGS[mixer])}
    of_mixer = {name: value for name, value in shared.items() if name in own}
    config = CoCoMixConfig(
        backbone_config=backbone_config(family), mixer=mixer, **of_mixer | {"initializer_range": 0.5} | settings
    )
    torch.manual_seed(0)
    return CoCoMixForCausalLM(config).eval()


def foreign(source: Path, folder: Path) -> Path:
    """A copy of a finished folder that does not describe itself, as others' folders don't."""
    shutil.copytree(source, folder)
    for name in (MANIFEST_NAME, SETTINGS_NAME):
        (folder / name).unlink()
    return folder


def tokens(B: int = 2, T: int = 9) -> torch.Tensor:
    return torch.randint(1, VOCAB_SIZE, (B, T))


def concept_labels(B: int = 2, T: int = 9, A: int = 3) -> torch.Tensor:
    labels = torch.randint(0, NUM_CONCEPTS, (B, T, A))
    labels[:, -1] = -100
    return labels
