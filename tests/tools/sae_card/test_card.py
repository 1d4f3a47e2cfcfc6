"""The quality card: what it says, that it resumes, and that its page stands alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from cocomix import TokenDataset, train_sae
from cocomix.sae.train import train_autoencoders
from cocomix.tools.sae_card import command
from cocomix.tools.sae_card.card import card_page, density_histogram, sample_latents
from tests.conftest import Tiny
from tests.sae.test_train import config


def test_an_interrupted_card_is_made_again_and_equals_an_undisturbed_one(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_sae(config(tiny, tmp_path / "whole", num_tokens=512))

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_card", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_sae(config(tiny, tmp_path / "parts", num_tokens=512))
    parts = train_sae(config(tiny, tmp_path / "parts", num_tokens=512))
    assert [manifest.fingerprint for manifest in parts] == [manifest.fingerprint for manifest in whole]


def test_the_card_is_no_part_of_the_fingerprint(tiny: Tiny, tmp_path: Path) -> None:
    (with_card,) = train_sae(config(tiny, tmp_path / "card", num_tokens=512))
    (without,) = train_autoencoders(config(tiny, tmp_path / "none", num_tokens=512))
    assert with_card.files.keys() > without.files.keys()
    assert with_card.fingerprint == without.fingerprint


def test_card_says_what_was_measured(tiny: Tiny, tmp_path: Path) -> None:
    (manifest,) = train_sae(config(tiny, tmp_path))
    card = json.loads((tmp_path / "quality.json").read_text(encoding="utf-8"))
    page = (tmp_path / "quality.html").read_text(encoding="utf-8")
    assert {"quality.json", "quality.html", "sae.json", "sae.safetensors"} == set(manifest.files)
    assert card["quality"] == manifest.facts["quality"]
    assert sum(card["density"]["num_latents"]) == 32 - card["quality"]["num_dead"]
    densities = [latent["density"] for latent in card["latents"]]
    assert densities == sorted(densities, reverse=True)
    assert len(densities) == min(24, 32 - card["quality"]["num_dead"])
    first = card["latents"][0]
    activations = [context["activation"] for context in first["contexts"]]
    assert len(activations) == 5
    assert activations == sorted(activations, reverse=True)
    text = TokenDataset(tiny.data, "validation")
    whole = text.tokenizer().decode(text.input_ids(range(text.num_windows)).flatten())
    assert all(context["before"] + context["token"] in whole for context in first["contexts"])
    assert page.startswith("<!DOCTYPE html>")
    assert f"Latent {first['latent']} " in page
    assert f"{card['quality']['fvu']:.3f}" in page
    assert page.count("<svg ") == 1


def make_card(text: str) -> dict[str, object]:
    context = {"before": text, "token": text, "after": text, "activation": 1.5}
    quality = {
        "fvu": 0.1,
        "fvu_normalized": 0.2,
        "l0": 4.0,
        "num_dead": 2,
        "loss": 3.0,
        "spliced_loss": 3.1,
        "mean_ablated_loss": 9.0,
    }
    quality |= {"num_tokens": 800, "num_counted_tokens": 1000, "loss_recovered": 0.98, "num_excluded": 7}
    return {
        "layer": 3,
        "num_latents": 6,
        "k": 4,
        "train_tokens": 5000,
        "quality": quality,
        "density": density_histogram(torch.tensor([0, 0, 1, 10, 1000, 999]), 1000),
        "latents": [
            {"latent": 5, "density": 0.5, "contexts": [context]},
            {"latent": 1, "density": 0.001, "contexts": []},
        ],
    }


def test_page_is_self_contained_and_text_is_escaped() -> None:
    page = card_page(make_card("</div><script>alert('1')</script>\x1b{{ 7 * 7 }}"))
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;") == 3
    assert page.count('<span class="sign">^[</span>{{') == 3
    assert not re.search(r"https?://|\bsrc=|@import|<link|<object|<iframe", page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', page)) <= set(ids)
    assert "active at none of 1.00k held-out tokens" in page
    assert "It leaves out 7 further tokens" in page
    assert "Active at no token of the validation text." in page
    assert "prefers-color-scheme: dark" in page


def test_density_histogram_counts_living_latents_by_decades() -> None:
    density = density_histogram(torch.tensor([0, 1, 2, 9, 10, 1000]), 1000)
    assert density["log10_edges"][0] == -3
    assert density["log10_edges"][-1] == 0
    found = {low: n for low, n in zip(density["log10_edges"], density["num_latents"], strict=False) if n}
    assert found == {-3.0: 1, -2.75: 1, -2.25: 1, -2.0: 1, -0.25: 1}


def test_sample_is_spread_over_the_living() -> None:
    counts = torch.tensor([0, 5, 100, 0, 1, 50, 7])
    assert sample_latents(counts, 3) == [2, 6, 4]
    assert sample_latents(counts, 9) == [2, 5, 6, 1, 4]
    assert sample_latents(torch.zeros(3, dtype=torch.long)) == []
