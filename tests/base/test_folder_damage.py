"""Whatever is changed in a finished folder of any kind is noticed, in one sentence; old folders by the checks they allow."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cocomix import CocomixError
from cocomix.base import artifacts
from cocomix.base.kinds import KINDS

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0_1"
#: One of each kind, as version 0.1 wrote it.
FOLDERS = {
    "token-dataset": "demo/data",
    "concept-dataset": "demo/concepts",
    "target-dataset": "targets",
    "sparse-autoencoder": "demo/sae",
    "training-run": "demo/cocomix",
    "evaluation": "demo/evaluation/ntp",
    "concept-inspection": "demo/inspection",
    "steering-score": "steering",
    "steering-example": "demo/steering",
    "comparison": "comparison",
    "demo": "demo",
}
#: Kinds that version 0.1 did not have.
NEWER = {"activation-cache"}
#: In place of an outer field; inner ones are changed a little, removed, or null.
REPLACEMENTS: tuple[Any, ...] = ([], {}, "x", -1)
#: Whole files that no parser likes.
TEXTS = {
    "cut": "{",
    "empty": "",
    "deep list": "[" * 10**5,
    "deep object": '{"kind": ' * 10**5,
    "digits": '{"format_version": ' + "9" * 5000 + "}",
    "not a number": '{"format_version": NaN}',
    "half a pair": '{"kind": "\\ud800", "format_version": 2, "settings": {}, "checksum": ""}',
    "no object": "[]",
    "no UTF-8": b"\xff\xfe{}",
}


@pytest.fixture(params=sorted(FOLDERS))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder as version 0.1 left it."""
    return Path(shutil.copytree(FIXTURES / FOLDERS[request.param], tmp_path / request.param))


@pytest.fixture
def folder(old: Path) -> Path:
    """The same, finished today."""
    facts = artifacts.read(old, old.name).facts
    (old / "manifest.json").unlink()
    artifacts.finish(old, facts)
    return old


def edits(value: Any) -> Iterator[Any]:
    """The JSON value with each of its fields replaced or removed in turn, and with one more."""
    if isinstance(value, dict):
        yield value | {"added": 1}
        for key in value:
            yield {name: member for name, member in value.items() if name != key}
            yield from (value | {key: edited} for edited in edits(value[key]))
    elif isinstance(value, list):
        yield [*value, 1]
        for index in range(len(value)):
            yield value[:index] + value[index + 1 :]
            yield from ([*value[:index], edited, *value[index + 1 :]] for edited in edits(value[index]))
    elif isinstance(value, str):
        yield value + "x"
    elif value is not None:
        yield value + 1
    if value is not None:
        yield None


def outer_edits(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key in value:
        yield from (value | {key: new} for new in REPLACEMENTS if new != value[key])


def is_noticed(folder: Path) -> bool:
    try:
        artifacts.read(folder, folder.name)
    except CocomixError:
        return True
    return False


def test_every_kind_is_walked() -> None:
    assert FOLDERS.keys() == KINDS.keys() - NEWER


@pytest.mark.parametrize("name", ["settings.json", "manifest.json"])
def test_every_edit_of_a_field_is_noticed(folder: Path, name: str) -> None:
    assert not is_noticed(folder)
    file = folder / name
    written = json.loads(file.read_text(encoding="utf-8"))
    for edited in (*edits(written), *outer_edits(written)):
        file.write_text(json.dumps(edited), encoding="utf-8")
        assert is_noticed(folder), edited


@pytest.mark.parametrize("name", ["settings.json", "manifest.json"])
def test_edits_of_an_old_folder_are_noticed_but_of_its_facts(old: Path, name: str) -> None:
    assert not is_noticed(old)
    file = old / name
    written = json.loads(file.read_text(encoding="utf-8"))
    for key in ("kind", "format_version", "settings", *(("files", "fingerprint") if name == "manifest.json" else ())):
        field = {key: written[key]}
        for edited in (*filter(None, edits(field)), {}, *outer_edits(field)):
            if key == "files" and _is_of_metrics(edited, written):
                continue  # the old fingerprint leaves them out; the file itself is checked
            file.write_text(json.dumps(written | edited if key in edited else _without(written, key)), encoding="utf-8")
            is_equal = edited.get(key) == written[key]  # 1.0 for 1
            assert is_noticed(old) or is_equal or "added" in edited, (key, edited)


def _without(value: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: member for name, member in value.items() if name != key}


def _is_of_metrics(edited: dict[str, Any], written: dict[str, Any]) -> bool:
    files = copy.deepcopy(written["files"])
    files.pop("metrics.jsonl", None)
    found = edited.get("files")
    return isinstance(found, dict) and {k: v for k, v in found.items() if k != "metrics.jsonl"} == files


def test_every_flipped_byte_is_noticed(folder: Path) -> None:
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        if file.name in artifacts.CONCEPT_METADATA_NAMES or file.name == "config.yaml":
            continue
        if any((part / "settings.json").exists() for part in file.parents if part != folder and folder in part.parents):
            continue  # a folder of its own
        content = file.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            damaged = bytearray(content)
            damaged[place] ^= 1
            file.write_bytes(damaged)
            assert is_noticed(folder), (file, place)
        file.write_bytes(content[:-2])
        assert is_noticed(folder), file
        file.unlink()
        assert is_noticed(folder), file
        file.write_bytes(content)
    assert not is_noticed(folder)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["settings.json", "manifest.json"])
def test_json_that_no_one_wrote_is_one_sentence(tmp_path: Path, name: str, text: str | bytes) -> None:
    shutil.copytree(FIXTURES / "targets", tmp_path / "targets")
    folder = tmp_path / "targets"
    settings = artifacts.read(folder, "target-dataset").settings
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    for attempt in (
        lambda: artifacts.read(folder, "target-dataset"),
        lambda: artifacts.fingerprint_of_path(folder),
        lambda: artifacts.begin(folder, "target-dataset", settings).__enter__(),
    ):
        with pytest.raises(CocomixError, match=name) as error:
            attempt()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_folder_is_not_finished_without_the_files_it_must_have(tmp_path: Path, kind: str) -> None:
    names = [pattern.replace("*", "-00001-of-00002") for pattern in KINDS[kind].required]
    for missing in names:
        folder = tmp_path / missing.replace("/", "-")
        with artifacts.begin(folder, kind, {}):
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).touch()
            (folder / missing).unlink()
            with pytest.raises(CocomixError, match="missing"):
                artifacts.finish(folder)
            (folder / missing).touch()
            artifacts.finish(folder)


def test_some_files_are_enough_where_all_would_take_long(tmp_path: Path) -> None:
    with artifacts.begin(tmp_path / "x", "thing", {}):
        for name in ("used", "other"):
            (tmp_path / "x" / name).write_text(name)
        artifacts.finish(tmp_path / "x")
    (tmp_path / "x" / "other").write_text("OTHER")
    assert artifacts.check(tmp_path / "x", ["used"])
    for names in (["other"], ["used", "unknown"], None):
        with pytest.raises(CocomixError, match=r"other|unknown"):
            artifacts.check(tmp_path / "x", names)


def test_folders_of_others_are_left_alone_and_unfinished_ones_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"editor.tabSize": 4}')
    assert artifacts.check(tmp_path) is None
    assert artifacts.fingerprint_of_path(tmp_path)
    with pytest.raises(CocomixError, match=r"settings\.json"), artifacts.begin(tmp_path, "evaluation", {}):
        pass
    with artifacts.begin(tmp_path / "x", "evaluation", {}):
        (tmp_path / "x" / "evaluation.json").write_text("{}")
    with pytest.raises(CocomixError, match="unfinished"):
        artifacts.fingerprint_of_path(tmp_path / "x")


def test_a_folder_deleted_while_it_is_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=r"x was deleted"), artifacts.begin(tmp_path / "x", "evaluation", {}):  # noqa: PT012
        shutil.rmtree(tmp_path / "x")
        artifacts.write_json(tmp_path / "x" / "evaluation.json", {})
    assert not (tmp_path / "x").exists()


def test_times_measurements_and_what_people_write_are_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    made = {}
    for number in ("1", "2"):
        folder = tmp_path / number
        with artifacts.begin(folder, "sparse-autoencoder", {"seed": 0}):
            for name in ("sae.json", "sae.safetensors", "quality.json", "quality.html", "README.md"):
                (folder / name).write_text(number if name[0] in "qR" else "")
            made[number] = artifacts.finish(folder, {"quality": number})
    assert made["1"].fingerprint == made["2"].fingerprint
    assert "README.md" not in made["1"].files
    (tmp_path / "1" / "quality.json").write_text("2")
    with pytest.raises(CocomixError, match=r"quality\.json"):
        artifacts.read(tmp_path / "1", "sparse-autoencoder")


@pytest.mark.parametrize(
    ("kind", "name", "is_read"),
    [
        ("training-run", "adapter_config.json", True),
        ("training-run", "added_tokens.json", True),
        ("training-run", "model.fp16.safetensors", True),
        ("training-run", "notes/model.safetensors", False),
        ("training-run", "NOTES.md", False),
        ("token-dataset", "tokenizer/added_tokens.json", True),
        ("token-dataset", "train/00001.parquet", False),  # shards are counted, not looked for
    ],
)
def test_a_file_that_a_library_would_pick_up_is_refused(kind: str, name: str, is_read: bool, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / FOLDERS[kind], tmp_path / kind))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    with pytest.raises(CocomixError, match=f"{name} was added") if is_read else contextlib.nullcontext():
        artifacts.read(folder, kind)
