"""What the tables say, in sentences made from the stored results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from cocomix.training.numbers import parse_count

from benchmarks.evidence.corpora import CORPUS_NAMES
from benchmarks.evidence.inputs import TEACHERS
from benchmarks.evidence.statistics import (
    WITH_TEACHER,
    Row,
    Share,
    best_of_rates,
    cost_with_teacher,
    differences_of,
    listed_shares,
    results_of,
    row_of,
    shares_to_match,
)
from benchmarks.evidence.tables import (
    EQUAL_FLOPS,
    EQUAL_PARAMETERS,
    KD,
    LONGER,
    LONGER_COMPARISON,
    PLAIN,
    PUBLISHED,
    ROWS,
    TOKENS,
    WITH_KD,
    unrated,
)
from cocomix.base.formats import format_signed
from cocomix.tools.compare.intervals import bootstrap_interval

NO_ORDER = "no clear order"
#: What was aimed at: shares of NTP's tokens and FLOPs that reach its final loss.
WANTED = {"train_tokens": 0.7, "train_flops": 0.8}
AMOUNTS = {
    "train_tokens": "tokens",
    "train_flops": "training FLOPs",
}


def pairs(teacher: str) -> tuple[tuple[str, str], ...]:
    """What is compared beside NTP."""
    return (
        ("recommended", EQUAL_PARAMETERS),
        ("recommended", EQUAL_FLOPS),
        ("recommended", "pause-residual"),
        ("recommended", KD[teacher]),
        (WITH_KD[teacher], KD[teacher]),
        (WITH_KD[teacher], "recommended"),
        ("recommended", PUBLISHED),
        ("recommended", "recommended-loss-only"),
    )


def answers(corpus: str, teacher: str) -> list[str]:
    """Sentences about one corpus and teacher; none before the recommended variant has run."""
    rows = {name: row_of(corpus, teacher, name) for name in ROWS[teacher]}
    if not rows["recommended"].differences:
        return []
    found = [against_ntp(corpus, teacher, "recommended", rows["recommended"])]
    both = WITH_KD[teacher]
    if rows[both].differences:
        found.append(against_ntp(corpus, teacher, both, rows[both]))
    for one, other in pairs(teacher):
        if other not in rows:
            continue
        differences = differences_of(rows[one].results, rows[other].results)
        if differences:
            found.append(f"`{one}` differs from `{other}` by {in_full(differences)}.")
        best = differences_of(rows[one].results, best_of_rates(corpus, teacher, other))
        if best != differences:
            found.append(
                f"`{one}` differs from `{unrated(other)}` at the better of its learning rates, seed by seed, by "
                f"{in_full(best)}."
            )
    paid = with_the_teacher_paid(corpus, teacher, rows["recommended"], in_full)
    if paid:
        found.append(f"With labels, dictionary and the teacher's own training counted, {paid}.")
    found.append(usage(rows["recommended"]))
    return found


def with_the_teacher_paid(corpus: str, teacher: str, recommended: Row, said: Callable[[Sequence[float]], str]) -> str:
    """What the recommended variant takes, and how it compares with NTP that takes about as much in more tokens."""
    cost = cost_with_teacher(recommended, results_of(corpus, teacher, PLAIN[teacher]))
    if cost is None:
        return ""
    text = f"`recommended` takes {cost:.2f} times NTP's FLOPs"
    shares = shares_to_match(corpus, teacher, "recommended", WITH_TEACHER)
    text += f", and {listed_shares(shares)} of them to reach NTP's final loss" if shares else ""
    for tokens in LONGER if (corpus, teacher) == LONGER_COMPARISON else ():
        differences = differences_of(results_of(corpus, teacher, PLAIN[teacher], tokens), recommended.results)
        if differences:
            times = parse_count(tokens, "tokens") / parse_count(TOKENS[teacher], "tokens")
            text += f"; NTP on {times:.2f} times as many tokens differs from `recommended` by {said(differences)}"
    return text


def against_ntp(corpus: str, teacher: str, variant: str, row: Row) -> str:
    """Loss at equal tokens, and what reaching NTP's loss takes."""
    text = f"After {TOKENS[teacher]} tokens `{variant}` differs from NTP by {in_full(row.differences)}"
    parts = reaching(corpus, teacher, variant)
    return text + (f". It reaches NTP's final loss with {'; '.join(parts)}." if parts else ".")


def reaching(corpus: str, teacher: str, variant: str) -> list[str]:
    """What NTP's final loss takes, on each axis."""
    parts = []
    for axis, words in AMOUNTS.items():
        shares = shares_to_match(corpus, teacher, variant, axis)
        if shares:
            parts.append(f"{listed_shares(shares)} of its {words}{aim(shares, WANTED[axis])}")
    return parts


def aim(shares: Sequence[Share], wanted: float) -> str:
    """On how many seeds what was aimed at is reached; a bound above it leaves that undecided."""
    met = [share.is_at_most(wanted) for share in shares]
    text = f"{wanted:.0%} or less was aimed at, and reached on {met.count(True)} of {len(met)}"
    return f" ({text}, {met.count(None)} undecided)" if None in met else f" ({text})"


def usage(row: Row) -> str:
    """Whether the concept stream matters."""
    costs = [result["probes"]["shuffle_batch"]["loss_delta"] for result in row.results.values()]
    errors = [result["probes"]["shuffle_batch"]["standard_error"] for result in row.results.values()]
    written = ", ".join(f"{format_signed(c)} ± {1.96 * e:.3f}" for c, e in zip(costs, errors, strict=True))
    return f"Giving each sequence another's concept stream costs `recommended` {written} nats (95 % intervals over windows)."


def listed(values: Sequence[float]) -> str:
    return ", ".join(map(format_signed, values))


def verdict(differences: Sequence[float]) -> str:
    """What the sign says, and of how many seeds."""
    number = f"{len(differences)} seed{'s' * (len(differences) > 1)}"
    if len(differences) == 1:
        return number
    number = f"mean {format_signed(statistics.fmean(differences))}, {number}"
    interval = bootstrap_interval(differences)
    if interval is not None:
        number = f"{number}, 95 % interval {format_signed(interval[0])} to {format_signed(interval[1])}"
    return f"{number}, {order(differences)}"


def order(differences: Sequence[float]) -> str:
    if all(value < 0 for value in differences):
        return "ahead on each"
    return "behind on each" if all(value > 0 for value in differences) else NO_ORDER


def in_short() -> str:
    """For the README: the answers with means in place of seeds."""
    return "\n" + "\n".join(f"- {sentence}" for sentence in summary(brief)) + "\n"


def brief(differences: Sequence[float]) -> str:
    """A mean, and what the sign says on how many seeds."""
    number = f"{len(differences)} seed{'s' * (len(differences) > 1)}"
    if len(differences) > 1:
        number = f"{order(differences)} of {number}" if order(differences) != NO_ORDER else f"{NO_ORDER}, {number}"
    return f"{format_signed(statistics.fmean(differences))} nats ({number})"


def in_full(differences: Sequence[float]) -> str:
    return f"{listed(differences)} nats ({verdict(differences)})"


def summary(said: Callable[[Sequence[float]], str] = in_full) -> list[str]:
    """The page's answers to its questions, each a sentence or two; none on what has not been run.

    Args:
        said: differences in words.
    """
    found = []
    rows = {corpus: row_of(corpus, "weak", "recommended") for corpus in CORPUS_NAMES}
    against = [
        f"on {CORPUS_NAMES[corpus]} `recommended` differs from NTP by {said(row.differences)} and reaches its final loss "
        "with " + " and ".join(reaching(corpus, "weak", "recommended"))
        for corpus, row in rows.items()
        if row.differences
    ]
    if against:
        found.append(
            f"**Against NTP, from a weak teacher** (its loss is above NTP's final one), after {TOKENS['weak']} tokens: "
            f"{'; '.join(against)}."
        )
    paid = [
        f"on {CORPUS_NAMES[corpus]} {text}"
        for corpus, row in rows.items()
        if (text := with_the_teacher_paid(corpus, "weak", row, said))
    ]
    if paid:
        found.append(
            f"**With the teacher paid for** (labels, dictionary, the teacher's own training): {'; '.join(paid)}."
        )
    for question, one, other in (
        ("Against distillation", always("recommended"), KD),
        ("Concepts and distillation, against distillation alone", WITH_KD, KD),
        ("Against pause vectors with a residual start", always("recommended"), always("pause-residual")),
        ("Concepts mixed in, against only predicted", always("recommended"), always("recommended-loss-only")),
        ("As published, against NTP", always(PUBLISHED), PLAIN),
        ("A random dictionary, against the trained one", always("recommended-random"), always("recommended")),
    ):
        parts = [part for teacher in TEACHERS if (part := compared(one[teacher], other[teacher], teacher, said))]
        if parts:
            found.append(f"**{question}**: {'; '.join(parts)}.")
    return found


def always(variant: str) -> dict[str, str]:
    """One variant with every teacher."""
    return dict.fromkeys(TEACHERS, variant)


def compared(one: str, other: str, teacher: str, said: Callable[[Sequence[float]], str]) -> str:
    """Differences on both corpora."""
    parts = []
    for corpus, name in CORPUS_NAMES.items():
        differences = differences_of(results_of(corpus, teacher, one), results_of(corpus, teacher, other))
        if differences:
            parts.append(f"{said(differences)} on {name}")
    return f"with the {teacher} teacher {', '.join(parts)}" if parts else ""
