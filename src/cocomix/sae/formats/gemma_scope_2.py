"""Gemma Scope 2: `config.json` and `params.safetensors`; its autoencoders, not its transcoders."""

from __future__ import annotations

from pathlib import Path

from cocomix.sae.formats.files import Dictionary, Settings, read_safetensors
from cocomix.sae.formats.gemma_scope import jumprelu_dictionary


def read(folder: Path) -> Dictionary:
    settings = Settings.read(folder / "config.json")
    architecture = settings.take("architecture", str)
    if architecture != "jump_relu":
        settings.refuse("architecture", architecture, "expected jump_relu")
    kind = settings.take("type", str, "sae")
    if kind != "sae":
        settings.refuse("type", kind, "only autoencoders of one place are read")
    if settings.take("affine_connection", bool, False):
        settings.refuse("affine_connection", True, "it belongs to a transcoder")
    hook_in = settings.take_optional("hf_hook_point_in", str)
    hook_out = settings.take_optional("hf_hook_point_out", str)
    if hook_out not in (None, hook_in):
        settings.refuse("hf_hook_point_out", hook_out, f"a transcoder, whose input is {hook_in!r}")
    settings.ignore(("model_name", "width", "l0"))  # descriptions
    settings.refuse_rest()
    return jumprelu_dictionary(read_safetensors(folder / "params.safetensors"), "w_enc", "w_dec")
