"""The report: its sentences follow the numbers, its page is self-contained, and corpus text cannot reach into it."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from cocomix.base.formats import format_flops
from cocomix.tools.compare.curves import units_to_match
from cocomix.tools.compare.figures import spread
from cocomix.tools.report.report import (
    best_rival,
    doubtful_time,
    equal_compute,
    format_change,
    headline,
    verdict,
    write_report,
)

NUM_TOKENS = 1_001_472


def curve(final: float, flops_per_token: float, seconds_per_token: float) -> list[dict[str, float]]:
    """Twenty points of a run whose loss falls towards `final`."""
    tokens = [float(round(NUM_TOKENS * (i + 1) / 20)) for i in range(20)]
    return [
        {
            "train_tokens": count,
            "train_flops": count * flops_per_token,
            "train_seconds": count * seconds_per_token,
            "validation_loss": final + 2.6 * math.exp(-4 * count / NUM_TOKENS) - 2.6 * math.exp(-4),
        }
        for count in tokens
    ]


def settings() -> dict[str, Any]:
    """Of a training run, as its manifest has them, as far as the report shows them."""
    decoder = {"family": "llama", "hidden_size": 128, "num_layers": 4, "num_heads": 4}
    mixer = {"layer": 1, "num_active_concepts": 32}
    return {
        "student": decoder | mixer,
        "optimizer": {"learning_rate": 3e-3},
        "batch_size": 8,
        "concept_loss_weight": 0.1,
    }


def student(title: str, loss: float, *, cost: float = 1.0, mixer: str = "none", mixing: str = "none") -> dict[str, Any]:
    points = curve(loss, 6.786e6 * cost, 1.36e-4 * cost)
    return {
        "title": title,
        "mixer": mixer,
        "mixing": mixing,
        "train_tokens": NUM_TOKENS,
        "train_flops": points[-1]["train_flops"],
        "teacher_flops": 4.2e12 if mixer == "concept" else 0.0,
        "train_seconds": points[-1]["train_seconds"],
        "num_parameters": 1_050_000 if mixer == "none" else 1_313_000,
        "validation_loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss / math.log(2) * 0.325,
        "num_tokens": 195_961,
        "curve": points,
        "settings": settings(),
    }


def probes(shuffle_batch: float) -> dict[str, dict[str, float]]:
    deltas = {"zero": 0.31, "mean": 0.142, "shuffle_batch": shuffle_batch, "shuffle_position": 0.174, "oracle": -0.087}
    return {name: {"loss": 4.5 + d, "loss_delta": d, "standard_error": 0.004} for name, d in deltas.items()}


def card(concept: int, before: str, token: str, after: str) -> dict[str, Any]:
    context = {"before": before, "token": token, "after": after, "activation": 7.25}
    return {"concept": concept, "name": f"name {concept} <b>", "label_share": 0.0123, "contexts": [context] * 5}


def steering() -> dict[str, Any]:
    return {
        "concept": 17,
        "strength": 1.0,
        "temperature": 0.7,
        "num_prompts": 16,
        "num_candidates": 20,
        "examples": [
            {
                "prompt": "def read(path):\n    return",
                "original": " path.read()\n",
                "steered": [[" path", False], [".close()\n\n<b>bold</b>", True]],
            }
        ],
        "original_activation": 0.012,
        "steered_activation": 1.437,
        "original_loss": 3.1,
        "steered_loss": 3.4,
    }


def make_summary(*, cocomix_loss: float = 4.509, shuffle_batch: float = 0.21, large: bool = False) -> dict[str, Any]:
    """A summary as `summarize` returns it."""
    students = {
        "ntp": student("NTP", 4.62),
        "cocomix": student("CoCoMix", cocomix_loss, cost=1.5, mixer="concept", mixing="interleave_residual"),
    }
    students["cocomix"]["probes"] = probes(shuffle_batch)
    if large:
        title = "CoCoMix, the paper's exact variant"
        students["cocomix-paper"] = student(title, 4.57, cost=1.5, mixer="concept", mixing="interleave")
        students["cocomix-paper"]["probes"] = probes(0.001)
        students["pause"] = student("Pause tokens", 4.6, cost=1.4, mixer="pause", mixing="interleave_residual")
        students["kd"] = student("Distillation", 4.3)
    matches = {
        f"{axis}_to_match_ntp": units_to_match(students["cocomix"]["curve"], students["ntp"]["curve"], f"train_{axis}")
        for axis in ("tokens", "flops", "seconds")
    }
    cards = [
        card(17, "x = '", "<script>alert(1)</script>", "'\n\n\treturn"),
        card(3, "\n        ", "self", ".assertEqual(a & b,\x0c"),
        {"concept": 5, "name": "silent", "label_share": 0.001, "contexts": []},
        *(card(100 + i, "class Reader:\n    def ", "__init__", "(self, file):\n        self") for i in range(9)),
    ]
    counts = {
        "num_bytes": 11_509_568,
        "num_documents": 698,
        "num_shards": 4,
        "num_tokens": 3_738_504,
        "num_windows": 29_207,
    }
    attribution = {
        "criterion": "attribution",
        "point": "original",
        "loss": "all_future",
        "sign": "raises_loss",
        "num_labels": 4,
    }
    return {
        "seed": 0,
        "corpus": {"context_length": 128, "vocab_size": 2048, "train": counts, "validation": counts},
        "teacher": {
            "train_tokens": 2_000_896,
            "train_flops": 13.58e12,
            "teacher_flops": 0.0,
            "train_seconds": 272.4,
            "num_parameters": 1_050_000,
            "validation_loss": 4.204,
            "settings": settings(),
        },
        "sae": {
            "fvu": 0.1234,
            "fvu_normalized": 0.1357,
            "l0": 31.6,
            "num_dead": 12,
            "loss": 4.204,
            "spliced_loss": 4.391,
            "mean_ablated_loss": 6.804,
            "num_tokens": 197_504,
            "num_counted_tokens": 197_504,
            "loss_recovered": 0.928,
            "layer": 2,
            "num_latents": 1024,
            "k": 32,
            "train_tokens": 1_000_448,
            "train_seconds": 61.5,
        },
        "labels": {
            "attribution": attribution,
            "num_concepts": 1024,
            "num_tokens": NUM_TOKENS,
            "flops_per_token": 4.2e6,
            "seconds": 33.3,
        },
        "students": list(students),
        **students,
        "probes": students["cocomix"]["probes"],
        **matches,
        "concepts": cards,
        "steering": steering(),
    }


def report(root: Path, summary: dict[str, Any]) -> str:
    # The summary is read back from JSON where a report is made again.
    write_report(root, json.loads(json.dumps(summary)))
    return (root / "report.html").read_text(encoding="utf-8")


def spaced(text: str) -> str:
    return text.replace("\u202f", " ").replace("&#8239;", " ")


def test_page_is_self_contained_and_corpus_text_is_escaped(tmp_path: Path) -> None:
    page = report(tmp_path, make_summary())
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>bold" not in page
    references = re.findall(r"https?://[^\"' <]+", page)
    assert set(references) == {"https://arxiv.org/abs/2502.08524"}
    assert not re.search(r"\bsrc=|@import|<link|<object|<iframe", page)
    targets = re.findall(r'href="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert all(target.startswith(("#", "inspection/index.html")) or target == references[0] for target in targets)


def test_every_id_is_unique_and_every_reference_has_one(tmp_path: Path) -> None:
    page = report(tmp_path, make_summary(large=True))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', page)) <= set(ids)


def test_figures_are_there_as_png_and_in_the_page(tmp_path: Path) -> None:
    page = report(tmp_path, make_summary())
    names = ["loss-flops.png", "loss-seconds.png", "loss-tokens.png", "probes-cocomix.png"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == names
    assert all((tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert page.count("<svg ") == page.count('role="img"') == len(names)
    assert "CoCoMix reaches NTP’s final loss at" in page
    probes = page[page.index('aria-label="Change of CoCoMix') :]
    assert "var(--series-2)" in probes[: probes.index("</svg>")]
    assert "var(--series-1)" not in probes[: probes.index("</svg>")]
    assert not list(tmp_path.rglob(".*.partial"))


def test_numbers_are_on_the_page(tmp_path: Path) -> None:
    page = spaced(report(tmp_path, make_summary()))
    for text in (
        "4.509",
        "101.5",
        "6.80 TFLOP",
        "4.20 TFLOP",
        "2 min 16 s",
        "1.31M",
        "0.123",
        "92.8 %",
        "6.804",
        "1.23 %",
    ):
        assert text in page, text
    # 4.204 nats / ln 2, times the split's tokens a byte
    assert f"{4.204 / math.log(2) * 3_738_504 / 11_509_568:.3f}" in page
    assert "0.012 to <strong>1.437" in page


def test_two_runs_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(tmp_path / name, make_summary(large=True))
    files = [sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("a", "b")]
    assert len(files[0]) == 6
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_what_steering_changed_is_marked_and_without_effect_it_is_left_out(tmp_path: Path) -> None:
    page = report(tmp_path, make_summary())
    assert " path<mark>.close()" in page
    assert "concept 17</a> (name 17 &lt;b&gt;)" in page
    assert "One concept steered" not in report(tmp_path, make_summary() | {"steering": None})


def test_report_of_a_teacher_and_a_dictionary_of_others(tmp_path: Path) -> None:
    page = report(tmp_path, make_summary() | {"teacher": None, "sae": None})
    assert "The dictionary of concepts" not in page
    assert "1,024 concepts" in page
    assert "distillation is the baseline to beat" in page


def test_the_first_screen_says_what_happened(tmp_path: Path) -> None:
    page = report(tmp_path, make_summary())
    first = page[page.index("<h1>") : page.index("<main>")]
    assert headline(make_summary()) in first
    assert "the concepts are used" in first
    assert first.count("<svg ") == 1
    assert not re.search(r"[a-z]\.[A-Z]", re.sub("<[^>]*>", "", page)), "a space is missing between sentences"


def test_report_with_five_students(tmp_path: Path) -> None:
    page = report(tmp_path, make_summary(large=True))
    assert "CoCoMix, the paper&#39;s exact variant" in page
    assert (tmp_path / "figures" / "probes-cocomix-paper.png").exists()
    assert "The lowest loss of all students is that of “Distillation”, 4.300." in page
    assert "the concepts are used" in page
    assert "the concepts are not shown to be used" in page


def test_report_of_a_worse_cocomix(tmp_path: Path) -> None:
    page = spaced(report(tmp_path, make_summary(cocomix_loss=4.67)))
    assert "0.050 nats higher" in page
    assert "which CoCoMix does not reach" in page


def test_headline_of_a_better_cocomix() -> None:
    summary = make_summary() | {"tokens_to_match_ntp": 0.74 * NUM_TOKENS}
    text = spaced(headline(summary))
    for part in ("0.111 nats lower", "4.509 against 4.620", "0.74M of 1.00M tokens (26 % fewer)", "1.5 times"):
        assert part in text


def test_headline_of_a_worse_cocomix() -> None:
    summary = make_summary(cocomix_loss=4.67)
    assert summary["tokens_to_match_ntp"] is None
    text = spaced(headline(summary))
    for part in ("0.050 nats higher", "4.670 against 4.620", "did not reach", "1.00M tokens", "1.5 times"):
        assert part in text


def test_headline_of_equal_losses() -> None:
    assert "is the same as NTP’s to three decimals (4.620 against 4.620)" in headline(make_summary(cocomix_loss=4.6202))


@pytest.mark.parametrize(("flops", "words"), [(7.54e12, "11 % more than"), (6.12e12, "10 % fewer than")])
def test_equal_compute_says_whether_flops_are_more_or_fewer(flops: float, words: str) -> None:
    text = spaced(equal_compute(make_summary() | {"flops_to_match_ntp": flops}))
    assert f"{format_flops(flops)} to get there ({words} NTP’s whole 6.80 TFLOP)".replace("\u202f", " ") in text
    assert "When it had spent NTP’s 6.80 TFLOP, its loss stood at" in text


def test_equal_compute_of_a_worse_cocomix() -> None:
    text = spaced(equal_compute(make_summary(cocomix_loss=4.67)))
    assert "NTP’s whole run took 6.80 TFLOP and 2 min 16 s; CoCoMix’s took 10.2 TFLOP" in text
    assert "did not reach NTP’s final loss" in text


def test_times_that_contradict_the_flops_are_doubted() -> None:
    summary = make_summary()
    assert doubtful_time(summary) is None
    summary["ntp"]["train_seconds"] = 4000.0
    assert "not to be trusted" in str(doubtful_time(summary))


def test_best_rival_is_silent_about_the_pair() -> None:
    assert best_rival(make_summary()) is None
    assert best_rival(make_summary(cocomix_loss=4.8)) is None


@pytest.mark.parametrize(("delta", "used"), [(0.0081, True), (0.0079, False), (-0.3, False)])
def test_verdict_needs_two_standard_errors(delta: float, used: bool) -> None:
    text = verdict("CoCoMix", probes(delta))
    assert ("the concepts are used" in text) is used
    assert ("not shown to be used" in text) is not used


def test_verdict_without_standard_error(tmp_path: Path) -> None:
    summary = copy.deepcopy(make_summary())
    for result in summary["probes"].values():
        result["standard_error"] = None
    assert "no standard error" in verdict("CoCoMix", summary["probes"])
    assert "no standard error" in report(tmp_path, summary)


def test_format_change() -> None:
    assert spaced(format_change(74, 100, less="fewer")) == "26 % fewer"
    assert spaced(format_change(111, 100, than="NTP’s")) == "11 % more than NTP’s"
    assert format_change(100, 100.2, than="NTP’s") == "the same as NTP’s"


def test_spread_moves_only_what_is_too_close() -> None:
    assert spread([1.0, 5.0, 3.0], 1.0) == [1.0, 5.0, 3.0]
    assert spread([4.0, 4.2, 9.0], 1.0) == pytest.approx([3.6, 4.6, 9.0])
    moved = sorted(spread([1.0, 1.1, 1.9, 2.2], 0.5))
    assert all(b - a >= 0.5 - 1e-9 for a, b in itertools.pairwise(moved))
