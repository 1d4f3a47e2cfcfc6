"""What the studio finds in the folders that it is given."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cocomix import CocomixError
from cocomix.studio.model_cache import ModelCache
from cocomix.studio.runs import find_runs
from tests.conftest import Tiny
from tests.studio.conftest import Demo


def test_a_demo_shows_its_models_curves_and_inspection(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = find_runs([demo.root])
    assert [run.name for run in runs.models] == ["demo/cocomix"]
    assert [run.name for run in runs.curves] == ["demo/cocomix", "demo/ntp"]
    assert runs.inspections == (demo.inspection,)
    monkeypatch.chdir(demo.root.parent.parent)
    assert [run.name for run in find_runs([demo.root.parent]).models] == ["demos0/demo/cocomix"]


def test_a_model_alone_finds_the_inspection_beside_it(demo: Demo) -> None:
    runs = find_runs([demo.model])
    assert [run.name for run in runs.models] == ["cocomix"]
    assert runs.inspections == (demo.inspection,)
    assert ModelCache(runs).model("cocomix").card(3) is not None


def test_plain_decoders_and_unfinished_runs_are_curves_only(tiny: Tiny, tmp_path: Path) -> None:
    runs = find_runs([tiny.teacher])
    assert not runs.models
    assert [run.path for run in runs.curves] == [tiny.teacher]
    with pytest.raises(CocomixError, match=r"no.* concepts"):
        ModelCache(runs).model("")
    shutil.copytree(tiny.teacher, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    assert len(find_runs([tmp_path / "run"]).curves) == 1


def test_equal_names_become_paths(demo: Demo, tmp_path: Path) -> None:
    shutil.copytree(demo.model, tmp_path / "cocomix")
    runs = find_runs([demo.model, tmp_path / "cocomix"])
    assert [run.name for run in runs.models] == [str(demo.model), str(tmp_path / "cocomix")]


def test_an_inspection_alone_names_its_page(demo: Demo, tmp_path: Path) -> None:
    shutil.copytree(demo.inspection, tmp_path / "latents")
    with pytest.raises(CocomixError, match=re.escape(str(tmp_path / "latents" / "index.html"))):
        find_runs([tmp_path / "latents"])


def test_mistakes_are_one_sentence(demo: Demo, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CocomixError, match=r"runs/demo .*make demo"):
        find_runs([])
    with pytest.raises(CocomixError, match=r"^nothing "):
        find_runs([Path("nothing")])
    with pytest.raises(CocomixError, match=re.escape(str(tiny.data))):
        find_runs([demo.root, tiny.data])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CocomixError, match=re.escape(str(tmp_path))):
        find_runs([tmp_path])
    with pytest.raises(CocomixError, match=r"'x'.* demo/cocomix"):
        ModelCache(find_runs([demo.root])).model("x")


def test_a_damaged_inspection_costs_its_cards_only(demo: Demo, tmp_path: Path) -> None:
    root = tmp_path / "demo"
    shutil.copytree(demo.root, root)
    (root / "inspection" / "concepts.parquet").write_bytes(b"nothing")
    assert ModelCache(find_runs([root])).model("").card(3) is None


def test_a_model_that_can_not_be_loaded_is_tried_again(demo: Demo, tmp_path: Path) -> None:
    root = tmp_path / "demo"
    shutil.copytree(demo.root, root)
    weights = root / "cocomix" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    model_cache = ModelCache(find_runs([root]))
    with pytest.raises(CocomixError, match="cocomix"):
        model_cache.model("")
    weights.write_bytes(whole)
    assert model_cache.model("") is model_cache.model("demo/cocomix")
