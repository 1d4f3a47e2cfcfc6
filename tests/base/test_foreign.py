"""What people bring without knowing: pointers of Git LFS, weights of a compiled model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cocomix import CocomixError, SparseAutoencoder, SparseAutoencoderConfig
from cocomix.base import artifacts
from cocomix.cli.main import main
from cocomix.data.text_files import FORMATS, read_file
from cocomix.data.tokenizer import load_tokenizer
from cocomix.modeling.loading import load_causal_lm
from tests.conftest import Tiny
from tests.modeling.helpers import student

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def says(file: Path) -> str:
    return f"^{re.escape(str(file))}.* is a pointer of Git LFS, not the file itself; run `git lfs pull`"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pointer_in_a_models_folder(
    name: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.teacher, folder, ignore=shutil.ignore_patterns("manifest.json", "settings.json"))
    (folder / name).write_text(POINTER)
    with pytest.raises(CocomixError, match=says(folder / name)):
        load_tokenizer(folder) if name == "tokenizer.json" else load_causal_lm(folder)
    assert main(["generate", "--model", str(folder), "--prompt", "def"]) == 1
    assert re.search(says(folder / name).removeprefix("^"), capsys.readouterr().err)


def test_a_pointer_in_a_finished_folder(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.data, tmp_path / "data", ignore=shutil.ignore_patterns(".*")))
    file = folder / "train" / "00000.parquet"
    file.write_text(POINTER)
    with pytest.raises(CocomixError, match=says(file)):
        artifacts.read(folder, None)


@pytest.mark.parametrize("name", ["sae.json", "sae.safetensors", "layer0.sae.pt"])
def test_a_pointer_in_place_of_a_dictionary(name: str, tmp_path: Path) -> None:
    SparseAutoencoder(SparseAutoencoderConfig(8, 16, 2)).save_pretrained(tmp_path)
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CocomixError, match=says(tmp_path / name)):
        SparseAutoencoder.from_pretrained(tmp_path / name if name.endswith(".pt") else tmp_path)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl.gz", *FORMATS])
def test_a_pointer_in_place_of_text(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"text{suffix}"
    file.write_text(POINTER)
    (found,) = read_file(file, "text")
    assert re.search(says(file), str(found))


@pytest.mark.parametrize("made_by", ["a whole model", "its blocks", "a dictionary"])
def test_weights_of_a_compiled_model(made_by: str, tmp_path: Path) -> None:
    is_dictionary = made_by == "a dictionary"
    saved = SparseAutoencoder(SparseAutoencoderConfig(8, 16, 2)) if is_dictionary else student()
    saved.save_pretrained(tmp_path)
    file = tmp_path / ("sae.safetensors" if is_dictionary else "model.safetensors")
    weights = {
        name.replace(".layers.0.", ".layers.0._orig_mod.") if made_by == "its blocks" else f"_orig_mod.{name}": tensor
        for name, tensor in load_file(file).items()
    }
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CocomixError, match=f"{tmp_path}.* hold `_orig_mod.`, so they were saved from a compiled model"):
        SparseAutoencoder.from_pretrained(tmp_path) if is_dictionary else load_causal_lm(tmp_path)
