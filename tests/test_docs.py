"""Pages hold what the code says, their Python runs, and their links point somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PhiConfig

from cocomix.modeling import backbones
from cocomix.modeling.model import CoCoMixForCausalLM

DOCS = Path(__file__).parent.parent / "docs"


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def run(page: str) -> dict[str, object]:
    """All Python of a page, top to bottom in one namespace."""
    names: dict[str, object] = {}
    for snippet in snippets(page):
        exec(compile(snippet, page, "exec"), names)
    return names


def test_the_adapter_of_the_guide_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "_ADAPTERS", dict(backbones._ADAPTERS))
    run("families.md")
    config = PhiConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    backbone, ids = AutoModelForCausalLM.from_config(config).eval(), torch.randint(1, 40, (2, 9))
    plain = CoCoMixForCausalLM.from_backbone(backbone, mixer="none")
    assert torch.equal(plain(input_ids=ids).logits, backbone(input_ids=ids).logits)
    model = CoCoMixForCausalLM.from_backbone(backbone, mixing="interleave", num_concepts=8, num_active_concepts=2)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **settings), model.generate(ids, use_cache=False, **settings))


def test_the_guide_to_the_model_runs() -> None:
    names = run("model.md")
    assert isinstance(names["new"], torch.Tensor)
    assert names["new"].shape == (2, 48)


@pytest.mark.parametrize("page", ["recipes.md", "planning.md"])
def test_recipes_and_plans_are_as_shown(page: str) -> None:
    assert "cocomix" in run(page)


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_point_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", (DOCS / page).read_text(encoding="utf-8")):
        assert (DOCS / link).exists(), link
