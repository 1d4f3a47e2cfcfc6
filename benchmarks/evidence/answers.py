"""What the tables say, in sentences made from the stored results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.evidence.corpora import CORPUS_NAMES
from benchmarks.evidence.inputs import TEACHERS
from benchmarks.evidence.statistics import (
    WITH_TEACHER,
    Row,
    Share,
    cost_with_teacher,
    differences_of,
    listed_shares,
    results_of,
    row_of,
    shares_to_match,
)
from benchmarks.evidence.tables import EQUAL_FLOPS, EQUAL_PARAMETERS, KD, LONGER, PLAIN, PUBLISHED, ROWS, TOKENS
from cocomix.base.formats import format_signed
from cocomix.planning.numbers import parse_count

#: What was aimed at: shares of NTP's tokens and FLOPs that reach its final loss.
WANTED = {"train_tokens": 0.7, "train_flops": 0.8}
AMOUNTS = {
    "train_tokens": "tokens",
    "train_flops": "training FLOPs",
    WITH_TEACHER: "FLOPs if labels, dictionary and the teacher's own training are counted",
}
#: What is compared beside NTP.
PAIRS = (
    ("recommended", EQUAL_PARAMETERS),
    ("recommended", EQUAL_FLOPS),
    ("recommended", "pause-residual"),
    ("recommended", KD),
    ("recommended-kd", KD),
    ("recommended-kd", "recommended"),
    ("recommended", PUBLISHED),
    ("recommended", "recommended-loss-only"),
)


def answers(corpus: str, teacher: str) -> list[str]:
    """Sentences about one corpus and teacher; none before the recommended variant has run."""
    rows = {name: row_of(corpus, teacher, name) for name in ROWS[teacher]}
    if not rows["recommended"].differences:
        return []
    found = [against_ntp(corpus, teacher, "recommended", rows["recommended"])]
    if rows["recommended-kd"].differences:
        found.append(against_ntp(corpus, teacher, "recommended-kd", rows["recommended-kd"]))
    for one, other in PAIRS:
        if other not in rows:
            continue
        differences = differences_of(rows[one].results, rows[other].results)
        if differences:
            found.append(f"`{one}` differs from `{other}` by {listed(differences)} nats ({verdict(differences)}).")
    cost = cost_with_teacher(rows["recommended"], results_of(corpus, teacher, PLAIN[teacher]))
    if cost is not None:
        found.append(
            f"`recommended` takes {cost:.2f} times NTP's FLOPs if labels, dictionary and the teacher's training are counted."
        )
    if teacher == "weak":
        found += longer(corpus, rows["recommended"])
    found.append(usage(rows["recommended"]))
    return found


def longer(corpus: str, recommended: Row) -> list[str]:
    """Against NTP that takes its FLOPs in more tokens."""
    found = []
    for tokens in LONGER:
        ntp = results_of(corpus, "weak", PLAIN["weak"], tokens)
        differences = differences_of(recommended.results, ntp)
        if differences:
            said = f"{listed(differences)} nats ({verdict(differences)})"
            times = parse_count(tokens, "tokens") / parse_count(TOKENS["weak"], "tokens")
            found.append(
                f"`recommended` differs by {said} from NTP with {tokens} tokens, {times:.2f} times its FLOPs at "
                f"{TOKENS['weak']}."
            )
    return found


def against_ntp(corpus: str, teacher: str, variant: str, row: Row) -> str:
    """Loss at equal tokens, and what reaching NTP's loss takes."""
    said = f"{listed(row.differences)} nats ({verdict(row.differences)})"
    text = f"After {TOKENS[teacher]} tokens `{variant}` differs from NTP by {said}"
    parts = []
    for axis, words in AMOUNTS.items():
        shares = shares_to_match(corpus, teacher, variant, axis)
        if shares:
            parts.append(f"{listed_shares(shares)} of its {words}{aim(shares, WANTED.get(axis))}")
    return text + (f". It reaches NTP's final loss with {'; '.join(parts)}." if parts else ".")


def aim(shares: Sequence[Share], wanted: float | None) -> str:
    """On how many seeds what was aimed at is reached; a bound above it says nothing."""
    if wanted is None:
        return ""
    decided = [met for share in shares if (met := share.is_at_most(wanted)) is not None]
    return f" ({wanted:.0%} or less was aimed at, and reached on {sum(decided)} of {len(decided)})" if decided else ""


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
    if all(value < 0 for value in differences):
        return f"{number}, ahead on each"
    return f"{number}, {'behind on each' if all(value > 0 for value in differences) else 'no clear order'}"


def in_short() -> str:
    """For the README: what was found, good and bad."""
    return "\n" + "\n".join(f"- {sentence}" for sentence in summary()) + "\n"


def summary() -> list[str]:
    """The page's answers to its questions, each a sentence or two; none on what has not been run."""
    found = []
    rows = {corpus: row_of(corpus, "weak", "recommended") for corpus in CORPUS_NAMES}
    for corpus, name in CORPUS_NAMES.items():
        row = rows[corpus]
        if row.differences:
            said = against_ntp(corpus, "weak", "recommended", row)
            found.append(f"On {name}, from a weak teacher (its loss is above its students' final one): {lowered(said)}")
    for corpus, name in CORPUS_NAMES.items():
        found += [f"On {name}, {said}" for said in longer(corpus, rows[corpus])]
    for teacher in TEACHERS:
        for one, other, question in (
            ("recommended", KD, "concepts against distillation with the same weight and schedule"),
            ("recommended-kd", KD, "concepts and distillation against distillation"),
            ("recommended", "recommended-loss-only", "concepts mixed in against only predicted"),
            (PUBLISHED, PLAIN[teacher], "as published, against NTP"),
        ):
            found += compared(one, other, f"With the {teacher} teacher, {question}", teacher)
    return found


def compared(one: str, other: str, question: str, teacher: str) -> list[str]:
    """One sentence on both corpora."""
    parts = []
    for corpus, name in CORPUS_NAMES.items():
        differences = differences_of(results_of(corpus, teacher, one), results_of(corpus, teacher, other))
        if differences:
            parts.append(f"{listed(differences)} nats on {name} ({verdict(differences)})")
    return [f"{question}: {'; '.join(parts)}."] if parts else []


def lowered(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
