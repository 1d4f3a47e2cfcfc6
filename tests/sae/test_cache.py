"""Activations on disk: the same dictionaries to the bit without the teacher, of bounded size, and of this run alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix import CocomixError
from cocomix.modeling.teacher import Teacher
from cocomix.sae import cache as activation_cache
from cocomix.sae.train import train_autoencoders
from tests.conftest import Tiny
from tests.sae.test_train import config


def weights(folder: Path) -> bytes:
    return (folder / "sae.safetensors").read_bytes()


def test_dictionaries_from_a_cache_equal_those_of_the_teacher(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: dict[str, Any] = {"num_tokens": 1024, "cache": tmp_path / "cache"}
    train_autoencoders(config(tiny, tmp_path / "both", layer=(0, 1), **shared))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4
    # Another size and activation, one of the layers, fewer steps.
    other: dict[str, Any] = {"num_latents": 40, "activation": "batchtopk", "layer": 1, "num_tokens": 512}
    residuals, calls = Teacher.residuals, []

    def counted(self: Teacher, input_ids: torch.Tensor, *more: Any, **named: Any) -> list[torch.Tensor]:
        calls.append(len(input_ids))
        return residuals(self, input_ids, *more, **named)

    monkeypatch.setattr(Teacher, "residuals", counted)
    train_autoencoders(config(tiny, tmp_path / "cached", **shared | other))
    assert 16 not in calls  # windows of a step; where the quality is measured there are more
    train_autoencoders(config(tiny, tmp_path / "alone", **other))
    assert calls.count(16) == 3
    assert weights(tmp_path / "cached") == weights(tmp_path / "alone")


def test_an_interrupted_cache_is_continued(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared: dict[str, Any] = {"num_tokens": 1024, "cache": tmp_path / "cache"}
    written: list[str] = []
    save = activation_cache.save_file

    def until(tensors: dict[str, torch.Tensor], path: Path) -> None:
        written.append(path.name)
        if len(written) == 3:
            raise KeyboardInterrupt
        save(tensors, path)

    monkeypatch.setattr(activation_cache, "save_file", until)
    with pytest.raises(KeyboardInterrupt):
        train_autoencoders(config(tiny, tmp_path / "sae", **shared))
    train_autoencoders(config(tiny, tmp_path / "sae", **shared))
    assert len(written) == 5  # the third again, then the fourth
    train_autoencoders(config(tiny, tmp_path / "plain", num_tokens=1024))
    assert weights(tmp_path / "sae") == weights(tmp_path / "plain")


def test_another_cache_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    train_autoencoders(config(tiny, tmp_path / "sae", num_tokens=512, cache=cache))
    for changed, names in (
        ({"seed": 1}, "seed"),
        ({"num_tokens": 1024}, "num_windows"),
        ({"layer": 1}, "layers"),
        ({"batch_size": 8}, "batch_size"),
    ):
        with pytest.raises(CocomixError, match=rf"cache holds .* other {names}; choose another --cache"):
            train_autoencoders(config(tiny, tmp_path / "other", **{"num_tokens": 512, "cache": cache} | changed))
        assert not (tmp_path / "other").exists()
    damaged = bytearray((cache / "00001.safetensors").read_bytes())
    damaged[-1] ^= 1
    (cache / "00001.safetensors").write_bytes(damaged)
    with pytest.raises(CocomixError, match=r"00001\.safetensors does not match its checksum"):
        train_autoencoders(config(tiny, tmp_path / "other", num_tokens=512, cache=cache))
    with pytest.raises(CocomixError, match=r"data holds a token-dataset, .* another --cache"):
        train_autoencoders(config(tiny, tmp_path / "other", num_tokens=512, cache=tiny.data))


def test_what_takes_too_much_is_refused_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 512 tokens, two layers, width 16, float32: 65,536 bytes.
    settings: dict[str, Any] = {"num_tokens": 512, "layer": (0, 1), "cache": tmp_path / "cache"}
    with pytest.raises(CocomixError, match=r"take 6.55e-05 GB, more than --cache-gigabytes 6e-05; raise it"):
        train_autoencoders(config(tiny, tmp_path / "sae", **settings, cache_gigabytes=6e-5))
    usage = shutil.disk_usage(tmp_path)._replace(free=60_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CocomixError, match=r"take 6.55e-05 GB, but .* has 6e-05 GB free"):
        train_autoencoders(config(tiny, tmp_path / "sae", **settings, cache_gigabytes=1.0))
    assert not (tmp_path / "cache").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
