"""GPT-2-shaped students with random weights, used by the cases."""

from __future__ import annotations

from transformers import GPT2Config

from cocomix.mixers.config import MixerConfig
from cocomix.modeling.configuration import CoCoMixConfig


def student_config(
    *, width: int, num_blocks: int, num_heads: int, vocab_size: int, num_positions: int, mixer: MixerConfig
) -> CoCoMixConfig:
    """The configuration of a student whose backbone is a GPT-2 without dropout."""
    backbone = GPT2Config(
        vocab_size=vocab_size,
        n_embd=width,
        n_layer=num_blocks,
        n_head=num_heads,
        n_positions=num_positions,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=0,
        eos_token_id=0,
    )
    return CoCoMixConfig(backbone_config=backbone, mixer=mixer)
