"""A dictionary whose files name its place is read there and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix import (
    AttributionConfig,
    CocomixError,
    ConceptDataset,
    ExtractConfig,
    SparseAutoencoder,
    TokenDataset,
    extract,
)
from cocomix.base import artifacts
from cocomix.labels.live import TeacherLabels, identify_sae
from cocomix.sae.formats.place import layer_of
from tests.conftest import Tiny
from tests.sae.format_files import CASES, K, saelens_5_settings, saelens_settings


def saelens(hook: str | None) -> dict[str, Any]:
    return saelens_settings("standard", metadata={"hook_name": hook})


@pytest.mark.parametrize(
    ("name", "settings", "layer"),
    [
        ("saelens 6, standard", saelens("blocks.1.hook_resid_post"), 1),
        ("saelens 6, standard", saelens("blocks.12.hook_out"), 12),
        ("saelens 6, standard", saelens("blocks.3.hook_resid_pre"), 2),
        ("saelens 6, standard", saelens("model.layers.5"), 5),
        ("saelens 6, standard", saelens("transformer.h.5"), 5),
        ("saelens 6, standard", saelens("my own place"), None),
        ("saelens 6, standard", saelens(None), None),
        ("saelens 5, standard", saelens_5_settings(), 6),
        ("saelens 5, standard", saelens_5_settings(hook_name=None) | {"hook_point": "blocks.2.hook_resid_post"}, 2),
        ("gemma scope 2", {}, 7),
        ("dictionary_learning, topk", {"submodule_name": "resid_post_layer_3"}, 3),
        ("dictionary_learning, topk", {}, None),
        ("sparsify", {}, None),
        ("qwen scope", {}, 7),
    ],
)
def test_the_layer_is_read_from_the_name_of_the_place(
    name: str, settings: dict[str, Any], layer: int | None, tmp_path: Path
) -> None:
    case = CASES[name]
    path = case.write(tmp_path, case.tensors(), case.settings | settings)
    assert layer_of(path) == layer
    fingerprint, found = identify_sae(path, None if layer is not None else 4, tmp_path, "")
    assert found == (4 if layer is None else layer)
    if layer is None:
        with pytest.raises(CocomixError, match="--layer"):
            identify_sae(path, None, tmp_path, "")
    else:
        assert identify_sae(path, layer, tmp_path, "") == (fingerprint, layer)
        with pytest.raises(CocomixError, match=rf"layer {layer},.*--layer is {layer + 1}"):
            identify_sae(path, layer + 1, tmp_path, "")


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_pre", "blocks.3.hook_mlp_out", "blocks.3.attn.hook_z"])
def test_a_dictionary_of_another_place_is_refused(hook: str, tmp_path: Path) -> None:
    case = CASES["saelens 6, standard"]
    path = case.write(tmp_path, case.tensors(), saelens(hook))
    with pytest.raises(CocomixError, match=hook):
        identify_sae(path, 3, tmp_path, "")


def test_what_a_name_says_is_part_of_the_identity(tmp_path: Path) -> None:
    case = CASES["qwen scope"]
    path = case.write(tmp_path, case.tensors(), {})
    (tmp_path / f"other-L0_{K - 1}").mkdir()
    other = Path(shutil.copy(path, tmp_path / f"other-L0_{K - 1}" / path.name))
    assert SparseAutoencoder.from_pretrained(other).config.num_active_latents == K - 1
    assert identify_sae(other, None, tmp_path, "")[0] != identify_sae(path, None, tmp_path, "")[0]


def test_labels_from_a_training_checkpoint_of_saelens(tiny: Tiny, tmp_path: Path) -> None:
    """The same dictionary in that form gives the same labels, and says its layer itself."""
    SparseAutoencoder.from_pretrained(tiny.sae).save_pretrained(tmp_path / "sae", format="saelens")
    settings = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    settings |= {"use_sparse_activations": False, "aux_loss_coefficient": 1.0, "decoder_init_norm": 0.1}
    settings["metadata"] |= {"hook_name": "blocks.0.hook_resid_post", "prepend_bos": True}
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(settings))
    extract(
        ExtractConfig(data=tiny.data, output=tmp_path / "x", teacher=tiny.teacher, sae=tmp_path / "sae", num_windows=16)
    )
    tokens = TokenDataset(tiny.data)
    assert torch.equal(
        ConceptDataset(tmp_path / "x", tokens).labels(range(16)),
        ConceptDataset(tiny.concepts, tokens).labels(range(16)),
    )


def test_labels_of_another_rule_are_not_continued(tiny: Tiny, tmp_path: Path) -> None:
    """Earlier versions filled up with negative scores; their folders are read, and not taken for this version's work."""
    config = ExtractConfig(data=tiny.data, output=tmp_path / "x", teacher=tiny.teacher, sae=tiny.sae, num_windows=16)
    made = extract(config)
    assert made.settings["candidates"]
    source = TeacherLabels(TokenDataset(tiny.data), tiny.teacher, tiny.sae, None, AttributionConfig())
    assert source.inputs["candidates"] == made.settings["candidates"]
    header = artifacts.read_json(tmp_path / "x" / "settings.json")
    del header["settings"]["candidates"]
    del header["checksum"]
    artifacts.write_json(tmp_path / "x" / "settings.json", artifacts.sealed(header))
    artifacts.finish(tmp_path / "x", made.facts)
    assert ConceptDataset(tmp_path / "x", TokenDataset(tiny.data)).num_windows == 16
    with pytest.raises(CocomixError, match=r"candidates: null.*--overwrite"):
        extract(config)
