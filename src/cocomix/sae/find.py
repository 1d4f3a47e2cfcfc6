"""Where a dictionary's files are, and which format they have: told from what is there, never from the path's own name.

Importing this file loads no torch, and neither does telling the format of a folder.
"""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

from cocomix.base.errors import CocomixError
from cocomix.base.foreign import require_content
from cocomix.base.hub import HUB_PLACE, download

#: Files that make a folder one of a format. Together they tell the formats apart.
FILES: dict[str, tuple[str, ...]] = {
    "own": ("sae.json", "sae.safetensors"),
    "sparsify": ("cfg.json", "sae.safetensors"),
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "gemma_scope": ("params.npz",),
    "gemma_scope_2": ("config.json", "params.safetensors"),
    "dictionary_learning": ("config.json", "ae.pt"),
}


def local_path(path: Path | str) -> Path:
    """The path itself where it exists; else what was downloaded from the Hugging Face Hub under that name.

    `organisation/repository` is looked up at the repository's root, `organisation/repository/inside` in a folder or as a
    file of it. Only files of known formats are downloaded.
    """
    if Path(path).exists():
        return Path(path)
    match = HUB_PLACE.fullmatch(str(path))
    if match is None:
        raise CocomixError(f"{path} does not exist, and is no name on the Hugging Face Hub (organisation/repository)")
    repository, inside = match["repository"], match["inside"]
    names = sorted(set().union(*FILES.values()))
    patterns = [f"{inside}/{name}" for name in names] + [inside] if inside else names
    folder = download(str(path), repository, patterns)
    downloaded = folder / inside if inside else folder
    if not downloaded.exists():
        raise CocomixError(f"{repository} on the Hugging Face Hub has no dictionary at {inside}")
    return downloaded


def recognise(path: Path) -> str:
    """Name of the format of a folder or a single file.

    Raises:
        CocomixError: it has none, or could have several.
    """
    if path.is_dir():
        return _recognise_folder(path)
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:  # it is none, or damaged in one of many ways
        if any(name.endswith(".npy") for name in archive.namelist()):
            return "gemma_scope"
    if path.suffix in (".safetensors", ".json") or path.name == "ae.pt":
        raise CocomixError(f"{path} is one file of a dictionary; name its folder")
    require_content(path)
    with path.open("rb") as file:
        is_of_torch = file.read(2) in (b"PK", b"\x80\x02")  # a zip archive, or a pickle as torch wrote it before 1.6
    if is_of_torch:
        from cocomix.sae.formats.files import read_pickle

        content = read_pickle(path)
        for name, tensor in (("openai", "pre_bias"), ("qwen_scope", "W_enc")):
            if tensor in content:
                return name
    raise CocomixError(f"{path} holds no dictionary that cocomix knows; single files are OpenAI's, Gemma's or Qwen's")


def _recognise_folder(path: Path) -> str:
    formats = [name for name, files in FILES.items() if all((path / file).is_file() for file in files)]
    if len(formats) == 1:
        return formats[0]
    if formats:
        raise CocomixError(f"{path} could be {' or '.join(formats)}; name its format")
    weights = {files[-1] for files in FILES.values()}
    inside = {file.parent for name in weights for file in path.rglob(name)} | {*path.rglob("*.sae.pt")}
    if inside:
        names, more = sorted(part.relative_to(path).as_posix() for part in inside), ", …" if len(inside) > 3 else ""
        raise CocomixError(f"{path} holds no dictionary itself; name one of those in it: {', '.join(names[:3])}{more}")
    expected = "; ".join(f"{name}: {' + '.join(files)}" for name, files in FILES.items())
    raise CocomixError(f"{path} holds no dictionary that cocomix knows ({expected}; openai, qwen_scope: a single file)")


def agreed_layer(sae: Path, trained: int | None, asked: int | None, option: str) -> int:
    """The block of the teacher that a dictionary reads, from what it says itself and what `option` asks for.

    Raises:
        CocomixError: neither names one, or they differ.
    """
    layer = asked if trained is None else trained
    if layer is None:
        raise CocomixError(f"{sae} does not say which block of the teacher it reads; give {option}")
    if asked not in (None, layer):
        raise CocomixError(
            f"the autoencoder {sae} was trained on layer {layer}, but {option} is {asked}; set it to {layer}"
        )
    return layer
