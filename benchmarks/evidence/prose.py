"""The numbers in the page's prose: of the set-up from what sets it up, of findings from the stored results."""

from __future__ import annotations

from cocomix.training.numbers import parse_count

from benchmarks.evidence.cells import Cell, stored_cells
from benchmarks.evidence.corpora import CORPUS_NAMES
from benchmarks.evidence.inputs import TEACHERS
from benchmarks.evidence.run import PROBE_WINDOWS, TASK_ITEMS
from benchmarks.evidence.scaling import INTERVAL, NUM_RESAMPLES, PAPER
from benchmarks.evidence.statistics import Results, results_of
from benchmarks.evidence.tables import (
    ABLATION_COMPARISON,
    ABLATION_TOKENS,
    LARGEST,
    OWN_RATE,
    PLAIN,
    RATES,
    ROWS,
    SCALING_RATES,
    SCALING_SHAPES,
    SCALING_TOKENS,
    SEEDS,
    SIZE,
    TOKENS,
    rated,
    unrated,
)
from benchmarks.evidence.variants import STEADY_RATE, VARIANTS
from cocomix.base.formats import format_count, format_signed
from cocomix.training.sizes import SIZES

NOT_RUN = "not run yet"
#: Nats that a run is behind the same one at the lower rate, from which on it counts as having fallen off; no run that
#: got off well differs by as much.
FALLEN = 0.15


def numbers() -> dict[str, str]:
    """By the name of the place that each fills."""
    size = SIZES[SIZE]
    published = VARIANTS["published"].draft(SIZE)
    batch_tokens = size.batch_size * size.context_length
    weak = parse_count(TOKENS["weak"], "tokens")
    paper_parameters, paper_tokens = ([facts[index] for facts in PAPER.values()] for index in (0, 1))
    plain = results_of(*ABLATION_COMPARISON, PLAIN["weak"])
    small = next((run["num_parameters"] for run in plain.values()), None)
    return {
        "shape": f"width {size.hidden_size} and {size.num_layers} blocks, a vocabulary of {size.vocab_size:,}, "
        f"windows of {size.context_length}",
        "students": " and ".join(f"{tokens} tokens with the {teacher} teacher" for teacher, tokens in TOKENS.items()),
        "teachers": "; ".join(
            f"*{name}*: {spec.what}, {format_count(spec.tokens)} tokens" for name, spec in TEACHERS.items()
        ),
        "insert layer": str(size.insert_layer),
        "num labels": str(published.attribution.num_labels),
        "k mix": str(size.num_active_concepts),
        "published weight": f"{published.concept_loss_weight:g}",
        "recommended weight": f"{VARIANTS['recommended'].draft(SIZE).concept_loss_weight:g}",
        "probe windows": str(PROBE_WINDOWS),
        "lambada items": f"{TASK_ITEMS['lambada']:,}",
        "blimp items": str(TASK_ITEMS["blimp"]),
        "blimp paradigms": paradigms(),
        "seeds": str(len(SEEDS)),
        "ablation tokens": ABLATION_TOKENS,
        "weak tokens": TOKENS["weak"],
        "strong tokens": TOKENS["strong"],
        "scaled": f"{len(SCALING_SHAPES)} shapes and {len(SCALING_TOKENS)} numbers of tokens",
        "scaling rates": " and ".join(f"{rate:g}" for rate in sorted(SCALING_RATES)),
        "benchmarks": benchmarks(),
        "parameters": parameters(),
        "validation tokens": validation_tokens(),
        "own rate": f"{OWN_RATE:g}",
        "steady rate": f"{STEADY_RATE:g}",
        "highest rate": f"{max(RATES['recommended']):g}",
        "steps": f"{weak / batch_tokens:,.0f}",
        "batch": str(size.batch_size),
        "resamples": str(NUM_RESAMPLES),
        "scaling interval": f"{INTERVAL[0]} to {INTERVAL[1]} %",
        "time of a cell": times(),
        "rate costs": rate_costs(),
        "fallen": fallen(),
        "larger": larger(small),
        "paper parameters": NOT_RUN
        if small is None
        else f"{min(paper_parameters) / small:,.0f} to {max(paper_parameters) / small:,.0f}",
        "paper tokens": f"{min(paper_tokens) / weak:,.0f}",
    }


def times() -> str:
    """How far seconds of equal work differ."""
    parts = []
    for variant in ("ntp", "recommended"):
        runs = [run for corpus in CORPUS_NAMES for run in results_of(corpus, "weak", variant).values()]
        if runs:
            seconds = sorted(run["train_seconds"] for run in runs)
            parts.append(f"{len(runs)} runs of `{variant}` took {seconds[0]:.0f} to {seconds[-1]:.0f} s")
    return ", ".join(parts) or NOT_RUN


def paradigms() -> str:
    """Of BLiMP, as many as a result has."""
    runs = results_of("english", "weak", "recommended")
    return str(next((len(run["tasks"]["blimp"]["paradigms"]) for run in runs.values()), NOT_RUN))


def parameters() -> str:
    """Of the main table's rows, one sentence; those of one number together."""
    by_number: dict[str, list[str]] = {}
    for variant in ROWS["weak"]:
        for run in results_of("standard_library", "weak", variant).values():
            names = by_number.setdefault(format_count(run["num_parameters"]), [])
            names += [] if f"`{variant}`" in names else [f"`{variant}`"]
    parts = [f"{number} parameters ({', '.join(names)})" for number, names in sorted(by_number.items())]
    return f"They have {'; '.join(parts)}." if parts else ""


def validation_tokens() -> str:
    found = {corpus: results_of(corpus, "weak", "recommended") for corpus in CORPUS_NAMES}
    parts = [
        f"{next(iter(runs.values()))['num_tokens']:,} tokens of {CORPUS_NAMES[corpus]}"
        for corpus, runs in found.items()
        if runs
    ]
    return " and ".join(parts) or NOT_RUN


def benchmarks() -> str:
    """What the two benchmarks make of the best and of the worst model by validation loss."""
    runs = [
        (run["validation_loss"], variant, run["tasks"])
        for variant in ROWS["weak"]
        for run in results_of("english", "weak", variant).values()
        if "tasks" in run
    ]
    if not runs:
        return ""
    first = max(runs, key=lambda run: run[2]["blimp"]["acc"])
    best = min(runs, key=lambda run: run[0])
    solved = max(run[2]["lambada"]["acc"] for run in runs)
    return (
        f"BLiMP does not order these models: after {TOKENS['weak']} tokens the highest, {first[2]['blimp']['acc']:.1%}, is "
        f"`{first[1]}` with a loss of {first[0]:.3f}; the lowest loss, {best[0]:.3f}, has {best[2]['blimp']['acc']:.1%}. "
        f"The most of LAMBADA's words that one of them gets right is {solved:.1%}."
    )


def rate_costs() -> str:
    """What the ablations' rate costs on the first seed."""
    parts = []
    for variant in ("recommended", "ntp"):
        steady, own = (
            _first(results_of(*ABLATION_COMPARISON, rated(variant, rate), ABLATION_TOKENS))
            for rate in (STEADY_RATE, OWN_RATE)
        )
        if steady is not None and own is not None:
            parts.append(f"`{variant}` by {format_signed(steady - own)} nats")
    return " and ".join(parts) or NOT_RUN


def _first(results: Results) -> float | None:
    return results[SEEDS[0]]["validation_loss"] if SEEDS[0] in results else None


def fallen() -> str:
    """How many of the runs at the size's own rate are far behind the same run at the steady one, and by how much."""
    behind, names = [], set()
    for cell in stored_cells():
        other = Cell(cell.corpus, cell.teacher, cell.size, rated(cell.variant, STEADY_RATE), cell.tokens, cell.seed)
        if cell.variant == unrated(cell.variant) and other.file.exists():
            one, steady = cell.result(), other.result()
            assert one is not None
            assert steady is not None
            behind.append(one["validation_loss"] - steady["validation_loss"])
            if behind[-1] >= FALLEN:
                names.add(f"`{cell.variant}`")
    worst = sorted(value for value in behind if value >= FALLEN)
    if not worst:
        return NOT_RUN
    return (
        f"{len(worst)} of {len(behind)} are behind by {FALLEN:g} nats or more ({worst[0]:.2f} to {worst[-1]:.2f}): "
        f"{', '.join(sorted(names))}"
    )


def larger(small: int | None) -> str:
    """Parameters of the largest NTP, as a multiple of the others'."""
    runs = results_of(*ABLATION_COMPARISON, LARGEST[0])
    found = next((run["num_parameters"] for run in runs.values()), None)
    return NOT_RUN if found is None or small is None else f"{found / small:.1f}"
