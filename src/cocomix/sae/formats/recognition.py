"""Which format a path holds, from what is there and never from its own name."""

from __future__ import annotations

import zipfile
from pathlib import Path

from cocomix.base.errors import CocomixError
from cocomix.sae.formats.files import read_pickle

#: Files that make a folder one of a format. Together they tell the formats apart.
FILES: dict[str, tuple[str, ...]] = {
    "own": ("sae.json", "sae.safetensors"),
    "sparsify": ("cfg.json", "sae.safetensors"),
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "gemma_scope": ("params.npz",),
    "gemma_scope_2": ("config.json", "params.safetensors"),
    "dictionary_learning": ("config.json", "ae.pt"),
}


def recognise(path: Path) -> str:
    """Name of the format of a folder or a single file.

    Raises:
        CocomixError: it is none, or could be several.
    """
    if path.is_dir():
        return _recognise_folder(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith(".npy") for name in archive.namelist()):
                return "gemma_scope"
    if path.suffix in (".safetensors", ".json") or path.name == "ae.pt":
        raise CocomixError(f"{path} is one file of a dictionary; name its folder")
    if "pre_bias" in read_pickle(path):
        return "openai"
    raise CocomixError(f"{path} holds no dictionary that cocomix knows; a single file is OpenAI's or Gemma Scope's")


def _recognise_folder(path: Path) -> str:
    found = [name for name, files in FILES.items() if all((path / file).is_file() for file in files)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CocomixError(f"{path} could be {' or '.join(found)}; name its format")
    inside = sorted(
        {file.parent.relative_to(path).as_posix() for names in FILES.values() for file in path.rglob(names[-1])}
    )
    if inside:
        more = ", …" if len(inside) > 3 else ""
        raise CocomixError(
            f"{path} holds no dictionary itself; name one of the folders in it: {', '.join(inside[:3])}{more}"
        )
    expected = "; ".join(f"{name}: {' + '.join(files)}" for name, files in FILES.items())
    raise CocomixError(f"{path} holds no dictionary that cocomix knows ({expected}; openai: a single file)")
