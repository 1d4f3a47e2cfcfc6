"""`docs/evidence.md` from the stored results; the prose is in `page.md`, the numbers are not.

python -m benchmarks.evidence --page
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.evidence.answers import answers, in_short, listed, summary, verdict
from benchmarks.evidence.cells import PLACES, Cell
from benchmarks.evidence.corpora import CORPUS_NAMES, TASKS
from benchmarks.evidence.figures import curves, scaling_curves
from benchmarks.evidence.inputs import TEACHERS
from benchmarks.evidence.prose import NOT_RUN, numbers
from benchmarks.evidence.scaling import FITTED, INTERVAL, PAPER, Curve, fits, gain, held_out, points, token_share
from benchmarks.evidence.statistics import (
    WITH_TEACHER,
    Row,
    cost_with_teacher,
    differences_of,
    listed_shares,
    results_of,
    row_of,
    shares_to_match,
    teacher_facts,
)
from benchmarks.evidence.tables import (
    ABLATION_COMPARISON,
    ABLATION_TOKENS,
    ABLATIONS,
    COMPARISONS,
    CONTROL_COMPARISON,
    CONTROLS,
    LARGEST,
    OWN_RATE,
    PLAIN,
    PUBLISHED,
    RATES,
    ROWS,
    SCALING_COMPARISON,
    SCHEDULES,
    SEEDS,
    SIZE,
    STRONG,
    TABLES,
    TOKENS,
    WITH_KD,
    plain_of,
    rated,
)
from benchmarks.evidence.variants import STEADY_RATE, VARIANTS
from benchmarks.render import README, fill, table
from cocomix.base.drawing import Drawing
from cocomix.base.formats import format_count, format_signed
from cocomix.tools.compare.intervals import mean_and_spread

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = DOCS / "evidence.md"
IMAGES = DOCS / "images"
SHORT_START, SHORT_END = "<!-- evidence in short -->", "<!-- end of evidence in short -->"
TEMPLATE = Path(__file__).with_name("page.md")
#: How any cell of a section is run, or run again.
CELLS = (
    "Any one of them again, compared with what is stored: "
    "`python -m benchmarks.evidence --cell {corpus}/{teacher}/small/ROW/{tokens}/SEED{places} --again`."
)
#: Causal probes and what they do.
PROBES = {
    "shuffle_batch": "another sequence's concepts",
    "shuffle_position": "another position's",
    "mean": "the mean concept vector",
    "zero": "no concept vector",
    "oracle": "the teacher's own",
}
#: Of `loss_columns`.
LOSS_HEADS = ("loss by seed", "mean ± sd", "difference to NTP", "95 % interval")
SHUFFLED = "loss change, concepts shuffled"
#: Of what it takes to reach NTP's loss.
AXES = ("train_tokens", "train_flops", WITH_TEACHER, "train_seconds")
#: Benchmarks, and their columns' heads.
TASK_SCORES = ("lambada", "blimp")
TASK_HEADS = ["LAMBADA, nats a word", "BLiMP accuracy"]


def write_page() -> None:
    drawings = {comparison: curves(*comparison) for comparison in COMPARISONS}
    scaling = scaling_curves()
    for drawing in (*drawings.values(), scaling):
        if drawing is not None:
            (IMAGES / f"{drawing.name}.png").write_bytes(drawing.png)
    PAGE.write_text(page(drawings, scaling), encoding="utf-8")
    fill(README, SHORT_START, in_short(), SHORT_END)


def page(drawings: Mapping[tuple[str, str], Drawing | None], scaling: Drawing | None) -> str:
    """The template with its blocks filled in.

    Args:
        drawings: by comparison.
        scaling: of the scaling section.
    """
    text = TEMPLATE.read_text(encoding="utf-8")
    blocks = {
        "progress": progress(),
        "summary": "\n".join(f"- {sentence}" for sentence in summary()) or f"{NOT_RUN.capitalize()}.",
        "schedules": schedule_table(),
        "strong": strong_table(),
        "main": "\n".join(main_section(comparison, drawings[comparison]) for comparison in COMPARISONS),
        "ablations": ablations(),
        "probes": probe_table(),
        "rates": rate_table(),
        "scaling": scaling_section(scaling),
        "largest": largest_section(),
        "controls": controls_section(),
        **numbers(),
    }
    for name, block in blocks.items():
        text = text.replace(f"<!-- {name} -->", block)
    return text


def progress() -> str:
    """How much of the tables has been run."""
    parts = []
    for name, cells in TABLES.items():
        keys = {cell.key for cell in cells()}
        parts.append(f"{sum(key.file.exists() for key in keys)} of {len(keys)} runs of the table `{name}`")
    return ", ".join(parts)


def main_section(comparison: tuple[str, str], drawing: Drawing | None) -> str:
    """One corpus and teacher."""
    corpus, teacher = comparison
    rows = [row_of(corpus, teacher, variant) for variant in ROWS[teacher]]
    lines = [f"### {CORPUS_NAMES[corpus].capitalize()}, {teacher} teacher", "", teacher_line(corpus, teacher), ""]
    if not any(row.results for row in rows):
        return "\n".join([*lines, f"{NOT_RUN.capitalize()}.", "", command(comparison), ""])
    lines += [main_table(corpus, teacher, rows), "", *missing(rows)]
    if drawing is not None:
        lines += [f"![{drawing.alt}](images/{drawing.name}.png)", ""]
    said = answers(corpus, teacher)
    lines += [*(f"- {sentence}" for sentence in said), ""] if said else []
    return "\n".join([*lines, command(comparison), ""])


def main_table(corpus: str, teacher: str, rows: Sequence[Row]) -> str:
    """What whole runs reach, and below it what they and NTP's loss take."""
    rows = [row for row in rows if row.results]
    reached = ["run", *LOSS_HEADS, "bits per byte", SHUFFLED]
    reached += TASK_HEADS if TASKS[corpus] else []
    taken = ["run", "FLOPs of the whole run, NTP = 1", "the same and the teacher's", "tokens to NTP's loss"]
    taken += ["FLOPs to NTP's loss", "the same and the teacher's", "seconds to NTP's loss"]
    return "\n\n".join(
        (
            table(reached, [reached_row(corpus, row) for row in rows]),
            table(taken, [taken_row(corpus, teacher, row) for row in rows]),
        )
    )


def teacher_line(corpus: str, teacher: str) -> str:
    """What the teacher is, and how it compares with its students."""
    text = f"The teacher has {TEACHERS[teacher].what}"
    facts = teacher_facts(corpus, teacher)
    if facts is not None:
        text += f"; it is at {facts['teacher_loss']:.3f} nats, and its dictionary has FVU {facts['sae_fvu']:.3f}"
    return text + "."


def reached_row(corpus: str, row: Row) -> list[str]:
    return [
        named(row),
        *loss_columns(row),
        f"{row.mean('bits_per_byte'):.3f}",
        probe(row, "shuffle_batch"),
        *(task_score(row, name) for name in TASK_SCORES if name in TASKS[corpus]),
    ]


def taken_row(corpus: str, teacher: str, row: Row) -> list[str]:
    ntp = results_of(corpus, teacher, plain_of(row.variant, teacher))
    flops, cost = row.mean("train_flops_per_token"), cost_with_teacher(row, ntp)
    base = statistics.fmean(result["train_flops_per_token"] for result in ntp.values()) if ntp else None
    return [
        f"`{row.variant}`",
        "" if base is None or flops is None else f"{flops / base:.2f}",
        "" if cost is None else f"{cost:.2f}",
        *(shares(corpus, teacher, row.variant, axis) for axis in AXES),
    ]


def probe_table() -> str:
    """All causal probes of models with concepts: the main table's, the ablations' and the controls'."""
    named_rows = [
        (f"{CORPUS_NAMES[corpus]}, {teacher} teacher, `{variant}`", row_of(corpus, teacher, variant))
        for corpus, teacher in COMPARISONS
        for variant in (PUBLISHED, "recommended", WITH_KD[teacher], "recommended-random")
    ]
    names = dict.fromkeys(name for variants in ABLATIONS.values() for name in variants)
    named_rows += [(f"ablations, `{row.variant}`", row) for row in map(ablation_row, names)]
    body = [
        [name, str(len(row.results)), *(probe(row, name) for name in PROBES)]
        for name, row in named_rows
        if any("probes" in result for result in row.results.values())
    ]
    return table(["models", "seeds", *PROBES.values()], body) if body else f"{NOT_RUN.capitalize()}."


def ablations() -> str:
    parts = []
    for question, variants in ABLATIONS.items():
        parts += [f"**{question}**", "", ablation_table(variants), ""]
    return "\n".join([*parts, table_command("ablations", ABLATION_TOKENS)])


def rate_table() -> str:
    """Losses of some rows at several learning rates."""
    rates = sorted({OWN_RATE, *(rate for some in RATES.values() for rate in some)})
    looked_at = [(*ABLATION_COMPARISON, name, TOKENS["weak"]) for name in RATES]
    looked_at += [(*ABLATION_COMPARISON, name, ABLATION_TOKENS) for name in ("ntp", "recommended")]
    body = []
    for corpus, teacher, variant, tokens in looked_at:
        rows = [row_of(corpus, teacher, rated(variant, rate), tokens) for rate in rates]
        if any(row.results for row in rows):
            body.append([f"{CORPUS_NAMES[corpus]}, `{variant}`, {tokens} tokens", *map(losses, rows)])
    found = (
        table(["losses by seed, at the learning rate", *map(str, rates)], body) if body else f"{NOT_RUN.capitalize()}."
    )
    return f"{found}\n\n{table_command('rates', 'TOKENS')}"


def schedule_table() -> str:
    """Losses of the first seed."""
    found = first_seed_table([ABLATION_COMPARISON], SCHEDULES)
    return f"{found}\n\n{table_command('schedules', TOKENS['weak'])}"


def strong_table() -> str:
    comparisons = [(corpus, "strong") for corpus in CORPUS_NAMES]
    found = first_seed_table(comparisons, STRONG)
    return f"{found}\n\n{table_command('strong', TOKENS['strong'], comparisons[-1])}"


def first_seed_table(comparisons: Sequence[tuple[str, str]], variants: Sequence[str]) -> str:
    """Losses of the first seed, a column a comparison."""
    body = []
    for name in variants:
        runs = [results_of(*comparison, name).get(SEEDS[0]) for comparison in comparisons]
        if any(runs):
            found = ["" if run is None else f"{run['validation_loss']:.3f}" for run in runs]
            body.append([f"`{name}`: {VARIANTS[name].what}", *found])
    head = [f"loss, seed {SEEDS[0]}, {CORPUS_NAMES[corpus]}, {teacher} teacher" for corpus, teacher in comparisons]
    return table(["run", *head], body) if body else f"{NOT_RUN.capitalize()}."


def ablation_table(variants: Sequence[str]) -> str:
    """Losses, differences, costs and whether concepts are used; and the first seed's loss at the size's own rate."""
    ntp = ablation_row("ntp").results
    rows = {name: ablation_row(name) for name in ("ntp", *variants)}
    body = []
    for name, row in rows.items():
        if row.results:
            other = results_of(*ABLATION_COMPARISON, name, ABLATION_TOKENS).get(0)
            flops = [run["train_flops"] / ntp[seed]["train_flops"] for seed, run in row.results.items() if seed in ntp]
            body.append(
                [
                    f"`{row.variant}`: {VARIANTS[name].what}",
                    *loss_columns(row),
                    f"{statistics.fmean(flops):.2f}" if flops else "",
                    "" if other is None else f"{other['validation_loss']:.3f}",
                ]
            )
    head = ["run", *LOSS_HEADS, "FLOPs, NTP = 1", f"loss of seed 0 at {OWN_RATE:g}"]
    return "\n".join([*([table(head, body), ""] if body else []), *missing(list(rows.values()))]).rstrip()


def controls_section() -> str:
    """Losses with a trained and with a random dictionary, and the differences of the two."""
    questions = [
        (CONTROL_COMPARISON, TOKENS[CONTROL_COMPARISON[1]], PLAIN[CONTROL_COMPARISON[1]], CONTROLS),
        (
            ABLATION_COMPARISON,
            ABLATION_TOKENS,
            rated("ntp", STEADY_RATE),
            tuple(rated(name, STEADY_RATE) for name in ("add-random-lambda-1", "add-lambda-1")),
        ),
    ]
    body = []
    for (corpus, teacher), tokens, plain, variants in questions:
        random, trained, ntp = (row_of(corpus, teacher, name, tokens) for name in (*variants, plain))
        differences = differences_of(random.results, trained.results)
        if differences:
            name = f"{CORPUS_NAMES[corpus]}, {teacher} teacher, {tokens} tokens, `{variants[0]}`"
            said = f"{listed(differences)} ({verdict(differences)})"
            body.append([name, losses(ntp), losses(random), losses(trained), said])
    head = ["losses by seed", "NTP", "random directions", "trained dictionary", "random less trained"]
    found = table(head, body) if body else f"{NOT_RUN.capitalize()}."
    return f"{found}\n\n{table_command('controls', TOKENS[CONTROL_COMPARISON[1]], CONTROL_COMPARISON)}"


def ablation_row(name: str) -> Row:
    """At the ablations' rate and length, against NTP at the same."""
    names = (rated(name, STEADY_RATE), ABLATION_TOKENS, rated("ntp", STEADY_RATE))
    return row_of(*ABLATION_COMPARISON, *names)


def missing(rows: Sequence[Row]) -> list[str]:
    """A line on rows without a result."""
    names = [f"`{row.variant}`" for row in rows if not row.results]
    return [f"{NOT_RUN.capitalize()}: {', '.join(names)}.", ""] if names else []


def table_command(name: str, tokens: str, comparison: tuple[str, str] = ABLATION_COMPARISON) -> str:
    """How to run or continue a section's cells, and how to repeat one."""
    corpus, teacher = comparison
    cells = CELLS.format(corpus=corpus, teacher=teacher, tokens=tokens, places=PLACES[corpus])
    return f"```\npython -m benchmarks.evidence --table {name}{PLACES[corpus]}\n```\n\n{cells}"


def scaling_section(drawing: Drawing | None) -> str:
    """Losses of all runs, the fits, and what they say elsewhere."""
    found = {variant: {(p.shape, p.tokens): p.loss for p in points(variant)} for variant in FITTED}
    body = [
        [
            f"{shape}, {format_count(tokens)} tokens",
            f"{loss:.3f}",
            *_scaled(found["recommended"].get((shape, tokens)), loss),
        ]
        for (shape, tokens), loss in found["ntp"].items()
    ]
    if not body:
        return f"{NOT_RUN.capitalize()}.\n\n{table_command('scaling', 'TOKENS')}"
    parts = [table(["width x blocks, tokens", "NTP", "recommended", "difference"], body), ""]
    curves_of = fits()
    if curves_of is not None:
        rows = [fit_row(*item) for item in curves_of.items()]
        parts += [table(["fit", "E", "A", "a", "B", "b", "residual, nats"], rows), ""]
        seen = [[name, f"{fitted:.3f}", f"{measured:.3f}"] for name, fitted, measured in held_out()]
        if seen:
            parts += ["Runs that were not fitted:", "", table(["run", "the fit's loss", "measured"], seen), ""]
        if drawing is not None:
            parts += [f"![{drawing.alt}](images/{drawing.name}.png)", ""]
        width = f"{INTERVAL[1] - INTERVAL[0]} % interval"
        head = [
            "extrapolated to",
            f"difference, nats ({width})",
            f"tokens to NTP's loss ({width})",
            "perplexity, NTP = 1",
        ]
        head += ["the paper's", "the paper's perplexities"]
        parts += [table(head, [paper_row(*item) for item in PAPER.items()]), ""]
    return "\n".join([*parts, table_command("scaling", "TOKENS")])


def largest_section() -> str:
    """The pair of the largest shape."""
    rows = [row_of(*SCALING_COMPARISON, variant) for variant in LARGEST]
    found = main_table(*SCALING_COMPARISON, rows) if any(row.results for row in rows) else f"{NOT_RUN.capitalize()}."
    return f"{found}\n\n{table_command('largest', TOKENS[SCALING_COMPARISON[1]], SCALING_COMPARISON)}"


def _scaled(loss: float | None, ntp: float) -> list[str]:
    return [NOT_RUN, ""] if loss is None else [f"{loss:.3f}", format_signed(loss - ntp)]


def fit_row(name: str, curve: Curve) -> list[str]:
    """Best value, and the 90 % interval over resampled residuals."""
    low, high = np.percentile(np.array(curve.resampled), INTERVAL, axis=0)
    values = [f"{best:.2f} ({a:.2f} to {b:.2f})" for best, a, b in zip(curve.best, low, high, strict=True)]
    return [f"`{name}`", *values, f"{curve.residual:.3f}"]


def paper_row(size: str, facts: tuple[float, float, float, float]) -> list[str]:
    N, T, ntp, cocomix = facts
    best, low, high = gain(N, T, "recommended")
    share, fewest, most = token_share(N, T, "recommended")
    return [
        f"{size}, {format_count(T)} tokens",
        f"{format_signed(best)} ({format_signed(low)} to {format_signed(high)})",
        f"{share:.0%} ({fewest:.0%} to {most:.0%})",
        f"{math.exp(best):.3f}",
        f"{cocomix / ntp:.3f}",
        f"NTP {ntp}, CoCoMix {cocomix}",
    ]


def task_score(row: Row, benchmark: str) -> str:
    """By seed, with the standard error over items; a perplexity as its logarithm."""
    found = [result["tasks"][benchmark] for result in row.results.values() if "tasks" in result]
    if benchmark == "lambada":
        pairs = [(f["perplexity"], f["perplexity_standard_error"]) for f in found]
        return ", ".join(f"{math.log(value):.2f} ± {error / value:.2f}" for value, error in pairs)
    return ", ".join(f"{f['acc']:.1%} ± {f['acc_standard_error']:.1%}" for f in found)


def loss_columns(row: Row) -> list[str]:
    """Of all seeds, their mean and spread, and how that differs from NTP."""
    spread = mean_and_spread(row.losses)
    mean = f"{spread['mean']:.3f}" + (
        "" if spread["standard_deviation"] is None else f" ± {spread['standard_deviation']:.3f}"
    )
    compared = any(row.differences)  # NTP itself is not
    return [
        losses(row),
        mean,
        format_signed(statistics.fmean(row.differences)) if compared else "",
        interval(row) if compared else "",
    ]


def losses(row: Row) -> str:
    return ", ".join(f"{loss:.3f}" for loss in row.losses)


def named(row: Row) -> str:
    return f"`{row.variant}`: {VARIANTS[row.variant].what}"


def interval(row: Row) -> str:
    found = row.interval
    return "" if found is None else f"{format_signed(found[0])} to {format_signed(found[1])}"


def shares(corpus: str, teacher: str, variant: str, axis: str) -> str:
    found = shares_to_match(corpus, teacher, variant, axis)
    return listed_shares(found) if found else ""


def probe(row: Row, name: str) -> str:
    """Mean over seeds of a probe's loss change."""
    found = [probes[name] for result in row.results.values() if name in (probes := result.get("probes", {}))]
    values = [one["loss_delta"] for one in found]
    return format_signed(statistics.fmean(values)) if values else ""


def command(comparison: tuple[str, str]) -> str:
    """How to run, continue or repeat a section's cells."""
    corpus, teacher = comparison
    cell = Cell(corpus, teacher, SIZE, "recommended", TOKENS[teacher], SEEDS[0])
    return (
        f"```\npython -m benchmarks.evidence --table main --only {corpus}/{teacher}/ {corpus}/none/{PLACES[corpus]}\n"
        f"{cell.command} --again   # one cell from its first step, and compared\n```\n\n"
        + CELLS.format(corpus=corpus, teacher=teacher, tokens=TOKENS[teacher], places=PLACES[corpus])
    )
