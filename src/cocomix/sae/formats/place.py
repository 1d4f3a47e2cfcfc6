"""Where in its teacher a dictionary belongs, as far as its files say so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cocomix.base.errors import CocomixError
from cocomix.sae.formats.files import Settings, short
from cocomix.sae.formats.find import recognise

#: Names of the residual stream after a block, or before one, of TransformerLens, Hugging Face and `dictionary_learning`.
_AFTER = "|".join(
    (
        r"blocks\.(\d{1,6})\.hook_(?:resid_post|out)",
        r"(?:\w+\.)*(?:layers|h)\.(\d{1,6})(?:\.output)?",
        r"resid_post_layer_(\d{1,6})",
    )
)
_BEFORE = r"blocks\.(\d{1,6})\.hook_(?:resid_pre|in)"
#: In names of other places. A name that says nothing of these is a name of someone's own.
_ELSEWHERE = r"attn|mlp|hook_|ln[12f]|norm|embed"


def layer_of(path: Path) -> int | None:
    """0-based block of the teacher after which a dictionary reads; None where its files do not say.

    Raises:
        CocomixError: they name another place than the residual stream after a block.
    """
    hook = _hook(path)
    if hook is None:
        return None
    if after := re.fullmatch(_AFTER, hook):
        return int(next(number for number in after.groups() if number is not None))
    before = re.fullmatch(_BEFORE, hook)
    if before is not None and int(before[1]) > 0:
        return int(before[1]) - 1
    if re.search(_ELSEWHERE, hook):
        raise CocomixError(
            f"{path} was trained on {short(hook)}, which is not the residual stream after a block of the teacher; labels "
            "come from there alone"
        )
    return None


def _hook(path: Path) -> str | None:
    """The name of the place in the files, or, of Qwen-Scope, whose files hold tensors alone, in the file's name."""
    format = recognise(path)
    hook: Any = None
    if format == "saelens":
        entries = Settings.read(path / "cfg.json").entries
        metadata = entries.get("metadata")  # new in version 6
        entries = metadata if isinstance(metadata, dict) else entries
        hook = entries.get("hook_name") or entries.get("hook_point")
    elif format == "gemma_scope_2":
        hook = Settings.read(path / "config.json").entries.get("hf_hook_point_in")
    elif format == "dictionary_learning":
        trainer = Settings.read(path / "config.json").entries.get("trainer")
        hook = trainer.get("submodule_name") if isinstance(trainer, dict) else None
    elif format == "qwen_scope":
        hook = path.name.replace("layer", "layers.").removesuffix(".sae.pt")
        return hook if re.fullmatch(_AFTER, hook) else None
    return hook if isinstance(hook, str) else None
