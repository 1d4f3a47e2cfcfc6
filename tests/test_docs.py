"""Pages hold what the code says, their Python runs, and their links point somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PhiConfig

import cocomix
from cocomix.modeling import backbones
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.training.recipes import VARIANTS

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]


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


def test_recipes_are_as_shown() -> None:
    config = run("recipes.md")["config"]
    assert isinstance(config, cocomix.TrainConfig)
    assert config.num_tokens == 1_000_000
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \|.*\|(.*)\|$", page, re.MULTILINE)
    assert [name for name, _ in rows] == list(VARIANTS)
    # What the last column says a recipe needs is what it asks for.
    for name, needs in rows:
        asked = ""
        try:
            cocomix.recipe(f"gpt2-tiny-{name}", data="data", output="run")
        except cocomix.CocomixError as error:
            asked = str(error)
        assert ("--teacher" in needs) == ("--teacher" in asked and "--labels" not in asked), (name, asked)
        assert ("labels" in needs) == ("--labels" in asked), (name, asked)


@pytest.mark.slow
def test_a_plan_is_as_shown() -> None:
    plan = run("planning.md")["plan"]  # the page asserts some of its numbers
    assert plan.num_parameters == 85_064_192
    assert plan.as_dict()["num_tokens"] == 200 * 10**9


def test_every_page_and_every_public_name_has_its_place() -> None:
    listed = re.findall(r"^[\w/]+$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in DOCS.glob("*.md") if path.stem != "index")
    named = re.findall(r"^\.\. auto\w+:: (\w+)", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == cocomix.__all__


def test_the_pages_stay_short() -> None:
    """Words without those of generated tables and of directives; raising the bound is a decision."""
    generated = re.compile(r"<!-- (.+?) -->.*?<!-- end of \1 -->|^```\{.*?^```", re.DOTALL | re.MULTILINE)
    words = {page.name: len(generated.sub("", page.read_text(encoding="utf-8")).split()) for page in PAGES}
    assert sum(words.values()) <= 25_000, words


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_point_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", (DOCS / page).read_text(encoding="utf-8")):
        assert (DOCS / link).exists(), link
