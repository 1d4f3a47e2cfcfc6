"""Where in its teacher a dictionary belongs, as far as its files say so."""

from __future__ import annotations

import re
from pathlib import Path

from cocomix.base.errors import CocomixError
from cocomix.sae.find import FILES, recognise
from cocomix.sae.formats.files import Settings, short

#: Names of the residual stream, of TransformerLens, Hugging Face, `dictionary_learning` and Qwen-Scope's files, and what to
#: add to the number for the block after which it is.
_PLACES = {
    r"blocks\.(\d{1,6})\.hook_(?:resid_post|out)": 0,
    r"blocks\.(\d{1,6})\.hook_(?:resid_pre|in)": -1,
    r"(?:\w+\.)*(?:layers|h)\.(\d{1,6})(?:\.output)?": 0,
    r"resid_post_layer_(\d{1,6})": 0,
    r"layer(\d{1,6})\.sae\.pt": 0,
}
#: In names of other places. A name that says nothing of these is a name of someone's own.
_ELSEWHERE = r"attn|mlp|hook_|ln[12f]|norm|embed"
_NAMED_BY = ("hook_name", "hook_point", "hf_hook_point_in", "submodule_name")


def layer_of(path: Path) -> int | None:
    """0-based block of the teacher after which a dictionary reads; None where its files do not say.

    Raises:
        CocomixError: they name another place than the residual stream after a block.
    """
    hook = _hook(path)
    for pattern, shift in _PLACES.items():
        if (match := re.fullmatch(pattern, hook)) and int(match[1]) + shift >= 0:
            return int(match[1]) + shift
    if re.search(_ELSEWHERE, hook):
        raise CocomixError(
            f"{path} was trained on {short(hook)}, which is not the residual stream after a block of the teacher; labels "
            "come from there alone"
        )
    return None


def _hook(path: Path) -> str:
    """The name of the place in the files' settings, or of a file that holds tensors alone its own."""
    name = FILES.get(recognise(path), ("",))[0]
    if not name.endswith(".json"):
        return path.name
    entries = Settings.read(path / name).entries
    for nested in ("metadata", "trainer"):
        entries = entries[nested] if isinstance(entries.get(nested), dict) else entries
    return next((entries[name] for name in _NAMED_BY if isinstance(entries.get(name), str)), "")
