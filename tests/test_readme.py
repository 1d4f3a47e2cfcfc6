"""What the README shows runs as shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cocomix import TrainConfig, train
from tests.conftest import CONCEPT, Tiny

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_python_snippets_run(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    concept = CONCEPT
    output = tmp_path / "runs" / "demo" / "cocomix"
    train(TrainConfig(data=tiny.data, output=output, labels=tiny.concepts, student=concept, num_tokens=512))
    monkeypatch.chdir(tmp_path)
    assert len(SNIPPETS) == 2
    for snippet in SNIPPETS:
        exec(compile(snippet, str(README), "exec"), {})


def test_links_point_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
