"""Folders that describe themselves: begun, finished, recognised, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cocomix import CocomixError
from cocomix.base import artifacts

SETTINGS = {"seed": 1, "nested": {"a": [1, 2]}}


def make(output: Path, settings: dict[str, object] | None = None, text: str = "content") -> artifacts.Manifest:
    with artifacts.begin(output, "thing", settings or SETTINGS) as finished:
        assert not finished
        (output / "sub").mkdir(exist_ok=True)
        (output / "sub" / "file.txt").write_text(text)
        return artifacts.finish(output, {"n": 3})


def test_a_finished_folder_is_recognised_and_read(tmp_path: Path) -> None:
    made = make(tmp_path / "x")
    with artifacts.begin(tmp_path / "x", "thing", SETTINGS) as finished:
        assert finished
    assert artifacts.read(tmp_path / "x", "thing") == made
    assert made.facts == {"n": 3}
    assert list(made.files) == ["sub/file.txt"]


def test_an_unfinished_folder_continues_with_equal_settings_only(tmp_path: Path) -> None:
    with artifacts.begin(tmp_path, "thing", SETTINGS):
        (tmp_path / "half").write_text("x")
    with artifacts.begin(tmp_path, "thing", SETTINGS) as finished:
        assert not finished
        assert (tmp_path / "half").exists()
    with (
        pytest.raises(CocomixError, match=r"nested\.a.*\[1, 2\].*\[1\]"),
        artifacts.begin(tmp_path, "thing", {"seed": 1, "nested": {"a": [1]}}),
    ):
        pass
    with pytest.raises(CocomixError, match=r"(?i)finish"):
        artifacts.read(tmp_path, "thing")


def test_overwrite_replaces_only_our_own_kind(tmp_path: Path) -> None:
    make(tmp_path / "x")
    with artifacts.begin(tmp_path / "x", "thing", {"seed": 2}, overwrite=True) as finished:
        assert not finished
        assert not (tmp_path / "x" / "sub").exists()
    with (
        pytest.raises(CocomixError, match=r"thing.*other"),
        artifacts.begin(tmp_path / "x", "other", {}, overwrite=True),
    ):
        pass
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_text("meow")
    with (
        pytest.raises(CocomixError, match=r"photos.*thing"),
        artifacts.begin(foreign, "thing", {}, overwrite=True),
    ):
        pass
    assert (foreign / "cat.jpg").exists()


def test_fingerprint_depends_on_settings_and_content_alone(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    assert first.fingerprint == second.fingerprint == artifacts.fingerprint_of_path(tmp_path / "a")
    assert make(tmp_path / "c", text="other").fingerprint != first.fingerprint
    assert make(tmp_path / "d", {"seed": 2}).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "missing"),
        (lambda file: file.write_text("conten"), r"6.*7"),
        (lambda file: file.write_text("contenT"), "checksum"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: object, message: str) -> None:
    make(tmp_path)
    damage(tmp_path / "sub" / "file.txt")  # type: ignore[operator]
    with pytest.raises(CocomixError, match=rf"sub/file\.txt.*{message}"):
        artifacts.read(tmp_path, "thing")
    with pytest.raises(CocomixError, match=r"sub/file\.txt"), artifacts.begin(tmp_path, "thing", SETTINGS):
        pass


def test_what_is_not_readable_is_named(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match="nowhere"):
        artifacts.read(tmp_path / "nowhere", "thing")
    with pytest.raises(CocomixError, match=r"manifest\.json"):
        artifacts.read(tmp_path, "thing")
    make(tmp_path / "x")
    with pytest.raises(CocomixError, match=r"thing.*dataset"):
        artifacts.read(tmp_path / "x", "dataset")
    manifest = tmp_path / "x" / "manifest.json"
    body = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(body | {"format_version": 99}))
    with pytest.raises(CocomixError, match="version 99"):
        artifacts.read(tmp_path / "x", "thing")
    manifest.write_text('{"kind": ')
    with pytest.raises(CocomixError, match=r"manifest\.json"):
        artifacts.read(tmp_path / "x", "thing")
    manifest.write_text("[]")
    with pytest.raises(CocomixError, match=r"manifest\.json"):
        artifacts.read(tmp_path / "x", "thing")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CocomixError, match=r"file/x.*file"),
        artifacts.begin(tmp_path / "file" / "x", "t", {}),
    ):
        pass
    with (
        pytest.raises(CocomixError, match=r"file.*--output"),
        artifacts.begin(tmp_path / "file", "t", {}),
    ):
        pass


def test_an_unfinished_folder_is_continued_even_with_overwrite_and_a_failed_beginning_is_forgotten(
    tmp_path: Path,
) -> None:
    with artifacts.begin(tmp_path, "thing", {"seed": 1}):
        pass
    with artifacts.begin(tmp_path, "thing", {"seed": 2}) as finished:
        assert not finished
        (tmp_path / "half").write_text("x")
    with artifacts.begin(tmp_path, "thing", {"seed": 2}, overwrite=True):
        assert (tmp_path / "half").exists()
    with artifacts.begin(tmp_path, "thing", {"seed": 3}, overwrite=True):
        assert not (tmp_path / "half").exists()


def test_a_clearing_that_was_killed_can_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    (tmp_path / "more").write_text("x")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt), artifacts.begin(tmp_path, "thing", {"seed": 2}, overwrite=True):
            pass
    with artifacts.begin(tmp_path, "thing", {"seed": 2}, overwrite=True) as finished:
        assert not finished


def test_times_are_checked_but_not_part_of_the_fingerprint(tmp_path: Path) -> None:
    def timed(folder: Path, seconds: str) -> artifacts.Manifest:
        with artifacts.begin(folder, "training-run", SETTINGS):
            for name in ("config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl"):
                (folder / name).write_text(seconds if name == "metrics.jsonl" else "")
            return artifacts.finish(folder)

    assert timed(tmp_path / "a", "1").fingerprint == timed(tmp_path / "b", "2").fingerprint
    (tmp_path / "a" / "metrics.jsonl").write_text("3")
    with pytest.raises(CocomixError, match=r"metrics\.jsonl.*checksum"):
        artifacts.read(tmp_path / "a", "training-run")


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from cocomix.base import artifacts\n"
        "with artifacts.begin(pathlib.Path(sys.argv[1]), 'thing', {}): pass"
    )
    with artifacts.begin(tmp_path, "thing", {}):
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "another process is writing" in other.stderr
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
def test_an_atomic_write_is_the_old_file_or_the_whole_new_one(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    with artifacts.atomic(path) as partial:
        partial.write_text("old")
        assert not path.exists()
    with pytest.raises(type(error)), artifacts.atomic(path) as partial:  # noqa: PT012
        partial.write_text("half of the n")
        assert path.read_text() == "old"
        raise error
    assert path.read_text() == "old"
    with artifacts.atomic(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize(
    "error", [CocomixError("no"), MemoryError(), OSError(28, "No space left"), KeyboardInterrupt()]
)
def test_what_fails_before_it_writes_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), artifacts.begin(tmp_path / "out", "thing", {"a": 1}, config={"a": 1}):
        raise error
    assert not list(tmp_path.iterdir())


def test_a_full_disk_for_the_settings_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), artifacts.begin(tmp_path / "out", "thing", {"a": 1}):
        pass
    assert not list(tmp_path.iterdir())
