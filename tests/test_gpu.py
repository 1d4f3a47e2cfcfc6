"""`make gpu`: what its stages leave, whatever becomes of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from benchmarks import gpu


@pytest.mark.parametrize(
    ("program", "state"), [("pass", "green"), ("exit('broken')", "red"), ("import time; time.sleep(60)", "too long")]
)
def test_a_stage_says_how_it_ended(tmp_path: Path, program: str, state: str) -> None:
    written = tmp_path / "found.json"
    code = f"open({str(written)!r}, 'w').write('[1]'); {program}"
    found = gpu.run(gpu.Stage("stage", (sys.executable, "-c", code), 60, written), 1.0, "cpu")
    assert (found["state"], found["result"]) == (state, [1])
    assert ("broken" in found.get("said", "")) == (state == "red")


def test_tests_that_were_all_skipped_show_nothing(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text("<testsuites><testcase name='one'><skipped/></testcase></testsuites>", encoding="utf-8")
    assert gpu.outcomes(report) == {"one": "skipped"}
    assert gpu.run(gpu.Stage("tests", ("true",), 1, report), 5.0, "cpu")["state"] == "red"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(gpu.missing_requirements())
    monkeypatch.setattr(gpu, "FOR_TESTS", ("torch>=99", "no-such-package"))
    missing = list(gpu.missing_requirements())
    assert missing[0].startswith("torch is 2")
    assert missing[0].endswith("not >=99")
    assert missing[1] == "no-such-package is not installed"


def test_every_size_is_measured_on_the_device(tmp_path: Path) -> None:
    tests, *measured = gpu.stages("cpu", "paper", tmp_path)
    assert "gpu" in tests.command
    names = ["train 69m", "extract 69m", "generate 69m", "train 386m", "generate 386m"]
    assert [stage.name for stage in measured] == names
    assert all("--device cpu" in " ".join(stage.command) for stage in measured)
