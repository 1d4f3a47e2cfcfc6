"""The tables of `docs/evidence.md` and `docs/evidence_details.md` from the stored results.

python -m benchmarks.evidence --page
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from benchmarks.common import DOCS, fill, losses, mean, signed, table
from benchmarks.evidence import tables as t
from benchmarks.evidence.corpora import CORPUS_NAMES, TASKS
from benchmarks.evidence.figures import figures
from benchmarks.evidence.inputs import TEACHERS
from benchmarks.evidence.rows import (
    WITH_TEACHER,
    Results,
    differences,
    ratios,
    results_of,
    shares_to_match,
    values_of,
)
from benchmarks.evidence.scaling import FITTED, fits, held_out, points
from benchmarks.evidence.variants import STEADY_RATE, VARIANTS
from cocomix.base.formats import format_count, format_signed
from cocomix.tools.compare.intervals import bootstrap_interval

PAGES = (DOCS / "evidence.md", DOCS / "evidence_details.md")
IMAGES = DOCS / "images"
#: Parts whose losses are compared, the second subtracted from the first.
PAIRS = (
    (t.RECOMMENDED, "NTP"),
    (t.RECOMMENDED, t.EQUAL_PARAMETERS),
    (t.RECOMMENDED, t.EQUAL_FLOPS),
    (t.RECOMMENDED, t.PAUSE_RESIDUAL),
    (t.RECOMMENDED, t.DISTILLED),
    (t.RECOMMENDED, t.PUBLISHED),
    (t.RECOMMENDED, t.PREDICTED_ONLY),
    (t.BOTH, "NTP"),
    (t.BOTH, t.DISTILLED),
    (t.BOTH, t.RECOMMENDED),
    (t.PUBLISHED, "NTP"),
)
#: Causal probes and what they put in the place of a model's concepts.
PROBES = {
    "shuffle_batch": "another sequence's",
    "shuffle_position": "another position's",
    "mean": "their mean",
    "zero": "none",
    "oracle": "the teacher's own",
}
#: What it takes to reach NTP's loss.
AXES = {
    "train_tokens": "tokens to NTP's loss",
    "train_flops": "FLOPs to NTP's loss",
    WITH_TEACHER: "the same, with the teacher's",
}


def refresh() -> None:
    """Put tables and figures as they are now on the pages."""
    for drawing in figures():
        (IMAGES / f"{drawing.name}.png").write_bytes(drawing.png)
    for page in PAGES:
        fill(page, blocks())


def blocks() -> dict[str, str]:
    """All tables by name."""
    found = {
        "main": main_table(),
        "teachers": teacher_table(),
        "differences": differences_table(),
        "ablations": ablation_table(),
        "probes": probe_table(),
        "rates": rate_table(),
        "weights weak": first_seed_table([t.BASE], t.SCHEDULES),
        "weights strong": first_seed_table([(corpus, "strong") for corpus in t.STRONG], t.STRONG["standard_library"]),
        "larger": losses_table(*t.BASE, t.LARGEST),
        **scaling_tables(),
    }
    for corpus, teacher in t.COMPARISONS:
        found[f"losses {corpus} {teacher}"] = losses_table(corpus, teacher, t.REGIMES[teacher].variants)
        found[f"costs {corpus} {teacher}"] = costs_table(corpus, teacher)
        if TASKS[corpus]:
            found[f"tasks {corpus} {teacher}"] = task_table(corpus, teacher)
    return found


def main_table() -> str:
    """Mean loss of every part in every comparison, and its difference to NTP's."""
    parts = dict.fromkeys(part for regime in t.REGIMES.values() for part in regime.parts)
    body = []
    for part in parts:
        row = [part]
        for corpus, teacher in t.COMPARISONS:
            regime = t.REGIMES[teacher]
            results = results_of(corpus, teacher, regime.parts[part]) if part in regime.parts else {}
            changes = differences(results, results_of(corpus, teacher, regime.ntp))
            change = "" if part == "NTP" or not changes else f" ({format_signed(statistics.fmean(changes))})"
            row.append(f"{statistics.fmean(values_of(results)):.3f}{change}" if results else "")
        body.append(row)
    return table(["", *(f"{CORPUS_NAMES[corpus]}, {teacher} teacher" for corpus, teacher in t.COMPARISONS)], body)


def teacher_table() -> str:
    """How good the teachers and their dictionaries are, beside NTP."""
    body = []
    for corpus, teacher in t.COMPARISONS:
        regime = t.REGIMES[teacher]
        taught = results_of(corpus, teacher, regime.parts[t.RECOMMENDED])
        ntp = values_of(results_of(corpus, teacher, regime.ntp))
        facts = next(iter(taught.values()), None)
        if facts is not None:
            numbers = losses([facts["teacher_loss"], statistics.fmean(ntp), facts["sae_fvu"]]).split(", ")
            name = f"{CORPUS_NAMES[corpus]}, {teacher}: {TEACHERS[teacher].what}"
            body.append([name, format_count(TEACHERS[teacher].tokens), regime.tokens, *numbers])
    return table(
        ["teacher", "its tokens", "its students' tokens", "its loss", "NTP's final loss", "dictionary's FVU"], body
    )


def losses_table(corpus: str, teacher: str, variants: Iterable[str]) -> str:
    """What whole runs reach."""
    body = []
    for variant, results in _with_results(corpus, teacher, variants):
        changes = differences(results, results_of(corpus, teacher, t.ntp_of(variant, teacher)))
        bits = f"{statistics.fmean(values_of(results, 'bits_per_byte')):.3f}"
        body.append([_named(variant), *_loss_columns(results, changes), bits, _probe(results, "shuffle_batch")])
    head = ["run", "loss by seed", "mean ± sd", "difference to NTP", "95 % interval", "bits per byte"]
    return table([*head, "loss change, concepts shuffled"], body)


def costs_table(corpus: str, teacher: str) -> str:
    """What whole runs take, and what reaching NTP's loss takes, both as shares of NTP's."""
    body = []
    for variant, results in _with_results(corpus, teacher, t.REGIMES[teacher].variants):
        ntp = results_of(corpus, teacher, t.ntp_of(variant, teacher))
        costs = [ratios(results, ntp, name, "train_flops") for name in ("train_flops", WITH_TEACHER)]
        shares = [_listed(shares_to_match(corpus, teacher, variant, axis)) for axis in AXES]
        body.append([f"`{variant}`", *(f"{statistics.fmean(cost):.2f}" for cost in costs), *shares])
    return table(["run", "FLOPs, NTP = 1", "with the teacher's", *AXES.values()], body)


def task_table(corpus: str, teacher: str) -> str:
    """Scores on benchmarks by seed, with the standard error over items; LAMBADA's is the logarithm of its perplexity."""
    body = []
    for variant, results in _with_results(corpus, teacher, t.REGIMES[teacher].variants):
        tasks = [result["tasks"] for result in results.values() if "tasks" in result]
        pairs = [(task["lambada"]["perplexity"], task["lambada"]["perplexity_standard_error"]) for task in tasks]
        lambada = ", ".join(f"{math.log(value):.2f} ± {error / value:.2f}" for value, error in pairs)
        blimp = (f"{task['blimp']['acc']:.1%} ± {task['blimp']['acc_standard_error']:.1%}" for task in tasks)
        body.append([f"`{variant}`", lambada, ", ".join(blimp)])
    return table(["run", "LAMBADA, nats a word", "BLiMP accuracy"], body)


def differences_table() -> str:
    """Paired differences of two runs."""
    pairs = [
        (
            f"{CORPUS_NAMES[corpus]}, {teacher}",
            f"{one} minus {other}",
            *(results_of(corpus, teacher, parts[part]) for part in (one, other)),
        )
        for corpus, teacher in t.COMPARISONS
        for parts in [t.REGIMES[teacher].parts]
        for one, other in PAIRS
        if one in parts and other in parts
    ]
    control = "labels of a random dictionary minus those of a trained one"
    library = CORPUS_NAMES[t.BASE[0]]
    pairs += [
        (f"{library}, strong", control, *(results_of(*t.CONTROL_COMPARISON, name) for name in t.CONTROLS)),
        (f"{library}, weak, 500K tokens", control, *map(_at_steady_rate, ("add-random-lambda-1", t.ABLATION_BASE))),
        (
            f"{library}, weak",
            f"NTP on {t.LONGER} tokens minus {t.RECOMMENDED}",
            results_of(*t.BASE, "ntp", t.LONGER),
            results_of(*t.BASE, "recommended"),
        ),
    ]
    body = [[where, what, *_difference(one, other)] for where, what, one, other in pairs]
    return table(["comparison", "difference", "by seed", "mean", "95 % interval"], body)


def ablation_table() -> str:
    """Losses, differences and costs, and the first seed's loss at the size's own rate; base and NTP come first."""
    ntp, body = _at_steady_rate("ntp"), []
    for question, names in {"": ("ntp", t.ABLATION_BASE), **t.ABLATIONS}.items():
        for name in names:
            results = _at_steady_rate(name)
            if results:
                own = results_of(*t.BASE, name, t.ABLATION_TOKENS).get(t.SEEDS[0])
                body.append(
                    [
                        question,
                        _named(name),
                        *_loss_columns(results, differences(results, ntp)),
                        f"{statistics.fmean(ratios(results, ntp, 'train_flops', 'train_flops')):.2f}",
                        _probe(results, "shuffle_batch"),
                        "" if own is None else f"{own['validation_loss']:.3f}",
                    ]
                )
    head = ["", "run", "loss by seed", "mean ± sd", "difference to NTP", "95 % interval", "FLOPs, NTP = 1"]
    return table([*head, "loss change, concepts shuffled", f"loss of seed 0 at {t.OWN_RATE:g}"], body)


def probe_table() -> str:
    """Mean loss changes under all causal probes."""
    body = []
    for corpus, teacher in t.COMPARISONS:
        parts = t.REGIMES[teacher].parts
        for variant in (parts[t.PUBLISHED], parts[t.RECOMMENDED], parts[t.BOTH], t.CONTROLS[0]):
            results = results_of(corpus, teacher, variant)
            if results:
                models = f"{CORPUS_NAMES[corpus]}, {teacher}: `{variant}`"
                body.append([models, *(_probe(results, name) for name in PROBES)])
    return table(["models", *PROBES.values()], body)


def rate_table() -> str:
    """Losses of some rows at several learning rates."""
    rates = sorted({t.OWN_RATE, *(rate for some in t.RATES.values() for rate in some)})
    lengths = [(name, t.REGIMES["weak"].tokens) for name in t.RATES]
    body = []
    for name, tokens in [*lengths, ("ntp", t.ABLATION_TOKENS), ("recommended", t.ABLATION_TOKENS)]:
        found = (results_of(*t.BASE, t.rated(name, rate), tokens) for rate in rates)
        body.append([f"`{name}`, {tokens} tokens", *(losses(values_of(results)) for results in found)])
    return table(["losses by seed at the learning rate", *map(str, rates)], body)


def first_seed_table(comparisons: Sequence[tuple[str, str]], variants: Sequence[str]) -> str:
    """Losses of the first seed, a column a comparison."""
    body = []
    for name in variants:
        runs = [results_of(*comparison, name).get(t.SEEDS[0]) for comparison in comparisons]
        body.append([_named(name), *("" if run is None else f"{run['validation_loss']:.3f}" for run in runs)])
    return table(["run", *(f"{CORPUS_NAMES[corpus]}, {teacher} teacher" for corpus, teacher in comparisons)], body)


def scaling_tables() -> dict[str, str]:
    """All runs, the fit, and what it says of runs it has not seen."""
    ntp, recommended = ({(p.shape, p.tokens): p.loss for p in points(variant)} for variant in FITTED)
    runs = [
        [f"{shape}, {format_count(tokens)} tokens", losses([loss]), losses([other]), format_signed(other - loss)]
        for (shape, tokens), loss in ntp.items()
        if (other := recommended.get((shape, tokens))) is not None
    ]
    found = {"scaling runs": table(["width x blocks, tokens", "NTP", "recommended", "difference"], runs)}
    fitted = [
        [f"`{name}`", *(f"{value:.2f}" for value in curve.parameters), losses([curve.residual])]
        for name, curve in (fits() or {}).items()
    ]
    found["scaling fit"] = table(["fit", "E", "A", "a", "B", "b", "residual, nats"], fitted)
    unseen = [[name, losses([loss]), losses([measured])] for name, loss, measured in held_out()]
    found["scaling unseen"] = table(["run", "the fit's loss", "measured"], unseen)
    return found


def _with_results(corpus: str, teacher: str, variants: Iterable[str]) -> list[tuple[str, Results]]:
    found = ((variant, results_of(corpus, teacher, variant)) for variant in variants)
    return [(variant, results) for variant, results in found if results]


def _at_steady_rate(name: str) -> Results:
    return results_of(*t.BASE, t.rated(name, STEADY_RATE), t.ABLATION_TOKENS)


def _named(variant: str) -> str:
    return f"`{variant}`: {VARIANTS[variant].what}"


def _loss_columns(results: Results, changes: Sequence[float]) -> list[str]:
    """Losses by seed, their mean, and how that differs from NTP; NTP is not compared with itself."""
    found = values_of(results)
    return [losses(found), mean(found), *(_mean_and_interval(changes) if any(changes) else ("", ""))]


def _difference(one: Results, other: Results) -> list[str]:
    changes = differences(one, other)
    return [signed(changes), *_mean_and_interval(changes)]


def _mean_and_interval(changes: Sequence[float]) -> tuple[str, str]:
    interval = bootstrap_interval(changes)
    return (
        format_signed(statistics.fmean(changes)) if changes else "",
        "" if interval is None else " to ".join(map(format_signed, interval)),
    )


def _listed(shares: Sequence[str]) -> str:
    """One for each seed, or one that all have."""
    return shares[0] if len(set(shares)) == 1 else ", ".join(shares)


def _probe(results: Results, name: str) -> str:
    """Mean over seeds of a probe's loss change."""
    probes = [result["probes"][name] for result in results.values() if name in result.get("probes", {})]
    return format_signed(statistics.fmean(probe["loss_delta"] for probe in probes)) if probes else ""
