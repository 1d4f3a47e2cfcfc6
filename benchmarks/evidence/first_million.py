"""The first million tokens: reads the stored runs of an earlier, smaller comparison, which nobody needs to repeat.

Students of GPT-2's family, width 128 and 4 blocks, took at most 1.6M tokens. A file is one run:
`benchmarks/results/first_million/CORPUS/TEACHER-small/VARIANT-TOKENS-SEED.json`; without a teacher TEACHER is `none`.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

from benchmarks.common import RESULTS, losses, mean, table
from benchmarks.evidence.numbers import differences, losses_of
from cocomix.base.artifacts import read_json
from cocomix.base.formats import format_flops, format_signed

FOLDER = RESULTS / "first_million"
CORPORA = {"standard_library": "standard library", "english": "English prose"}
#: By teacher: tokens of its students, and the variant in each row of the table; its weights and rate suit the teacher.
PARTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "weak": (
        "1M",
        {
            "NTP": "ntp",
            "NTP with equal active parameters": "ntp-equal-parameters-rate-0.002",
            "NTP with the FLOPs of CoCoMix (paper)": "ntp-equal-flops-rate-0.002",
            "pause vectors with a residual start": "pause-residual",
            "distillation": "kd-1-cosine",
            "CoCoMix (paper)": "published-rate-0.002",
            "CoCoMix (ours)": "recommended",
            "CoCoMix (ours) without mixing": "recommended-loss-only",
            "CoCoMix (ours) with distillation": "recommended-kd",
        },
    ),
    "strong": (
        "500K",
        {
            "NTP": "ntp-rate-0.002",
            "distillation": "kd-10",
            "CoCoMix (paper)": "published-rate-0.002",
            "CoCoMix (ours)": "recommended",
            "CoCoMix (ours) without mixing": "recommended-loss-only",
            "CoCoMix (ours) with distillation": "recommended-kd-10",
        },
    ),
}


@cache
def runs() -> dict[tuple[str, str, str, str], dict[int, dict[str, Any]]]:
    """Results by corpus, teacher (or `none`), variant and tokens, then by seed."""
    found: dict[tuple[str, str, str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for path in sorted(FOLDER.glob("*/*/*.json")):
        variant, tokens, seed = path.stem.rsplit("-", 2)
        teacher = path.parent.name.partition("-")[0]
        found[path.parent.parent.name, teacher, variant, tokens][int(seed)] = read_json(path)
    return found


def blocks() -> dict[str, str]:
    return {
        "first million": main_table(),
        **{f"first million {corpus}": runs_table(corpus) for corpus in CORPORA},
    }


def main_table() -> str:
    """Mean loss over seeds of every row in every comparison, and its mean difference to NTP's, paired by seed."""
    comparisons = [(corpus, teacher) for corpus in CORPORA for teacher in PARTS]
    body = []
    for part in PARTS["weak"][1]:
        row = [part]
        for corpus, teacher in comparisons:
            results, ntp = _part(corpus, teacher, part), _part(corpus, teacher, "NTP")
            loss = f"{statistics.fmean(losses_of(results)):.3f}" if results else ""
            changes = differences(results, ntp) if part != "NTP" else []
            row.append(f"{loss} ({format_signed(statistics.fmean(changes))})" if changes else loss)
        body.append(row)
    return table(["", *(f"{CORPORA[corpus]}, {teacher} teacher" for corpus, teacher in comparisons)], body)


def _part(corpus: str, teacher: str, part: str) -> Mapping[int, Mapping[str, Any]]:
    tokens, parts = PARTS[teacher]
    variant = parts.get(part, "")
    return runs().get((corpus, teacher, variant, tokens)) or runs().get((corpus, "none", variant, tokens), {})


def runs_table(corpus: str) -> str:
    """All runs of a corpus."""
    body = []
    for (where, teacher, variant, tokens), results in runs().items():
        if where == corpus:
            found = [result["validation_loss"] for result in results.values()]
            first = next(iter(results.values()))
            shuffled = first.get("probes", {}).get("shuffle_batch")
            body.append(
                [
                    *(teacher, f"`{variant}`", tokens, losses(found), mean(found), format_flops(first["train_flops"])),
                    "" if shuffled is None else format_signed(shuffled["loss_delta"]),
                ]
            )
    head = ["teacher", "run", "tokens", "loss by seed", "mean ± sd", "FLOPs of the student"]
    return table([*head, "loss change, concepts shuffled (first seed)"], body)
