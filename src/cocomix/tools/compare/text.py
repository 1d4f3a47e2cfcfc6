"""The tables and sentences of a comparison, shared by the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import rich.table
from rich import box
from rich.text import Text

from cocomix.base.formats import NARROW_SPACE, format_count, format_flops, format_seconds, format_signed
from cocomix.tools.compare.comparison import mean_of
from cocomix.tools.compare.curves import CURVE_AXES
from cocomix.tools.tables import rendered_text

NOTHING = "–"
FORMATS: Mapping[str, Callable[[float | int], str]] = {
    "train_tokens": format_count,
    "train_flops": format_flops,
    "train_seconds": format_seconds,
}
AXIS_NAMES = {"train_tokens": "tokens", "train_flops": "FLOPs", "train_seconds": "seconds"}


@dataclass(frozen=True)
class Table:
    """Cells of text under headings."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(result: Mapping[str, Any]) -> list[Table]:
    """The tables of a comparison that have rows."""
    candidates = [_runs(result), _differences(result), *_reaching(result), _seeds(result)]
    return [table for table in candidates if table.rows]


def comparison_text(result: Mapping[str, Any], width: int | None = None) -> str:
    """All tables and notes as text for a terminal.

    Args:
        result: as `compare_groups` returns it.
        width: columns; None: as wide as the terminal.
    """
    parts: list[Any] = []
    for table in tables(result):
        parts += [Text(f"\n{table.title}"), _drawn(table)]
    return rendered_text(*parts, Text(headline(result)), *map(Text, result["notes"]), width=width)


def headline(result: Mapping[str, Any]) -> str:
    """The lowest loss and its difference from the baseline."""
    losses = {name: facts["validation_loss"]["mean"] for name, facts in result["groups"].items()}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    best = min(known, key=known.__getitem__)
    text = f"The lowest validation loss is that of {best}, {known[best]:.3f} nats a token"
    difference = result["groups"][best].get("difference", {"mean": None})
    if difference["mean"] is None:
        return f"{text}."
    return f"{text}: {_difference_text(difference)} against {result['baseline']}."


def _runs(result: Mapping[str, Any]) -> Table:
    headings = ("run", "seeds", "parameters", "tokens", "FLOPs", "teacher’s FLOPs", "time", "validation loss")
    rows = []
    for name, facts in result["groups"].items():
        loss = facts["validation_loss"]
        rows.append(
            (
                name if facts["is_finished"] else f"{name} (unfinished)",
                ", ".join(str(run["seed"]) for run in facts["runs"]),
                _or_nothing(mean_of(facts["runs"], "num_parameters"), format_count),
                _progress(facts),
                _or_nothing(mean_of(facts["runs"], "train_flops"), format_flops),
                _or_nothing(mean_of(facts["runs"], "teacher_flops") or None, format_flops),
                _or_nothing(mean_of(facts["runs"], "train_seconds"), format_seconds),
                _mean_text(loss),
            )
        )
    return Table("Runs", headings, tuple(rows))


def _differences(result: Mapping[str, Any]) -> Table:
    reference = result["baseline"]
    rows = []
    for name, facts in result["groups"].items():
        if "difference" in facts:
            difference = facts["difference"]
            rows.append((name, _difference_text(difference), *(_cell(facts, reference, axis) for axis in CURVE_AXES)))
    axes = tuple(f"{AXIS_NAMES[axis]} to its final loss" for axis in CURVE_AXES)
    return Table(f"Against {reference}", ("run", "difference of the loss", *axes), tuple(rows))


def _reaching(result: Mapping[str, Any]) -> list[Table]:
    """Every group against every other, in both directions."""
    groups = result["groups"]
    return [
        Table(
            f"{AXIS_NAMES[axis][0].upper()}{AXIS_NAMES[axis][1:]} a run (row) needed to reach another’s final loss (column)",
            ("run", *groups),
            tuple((name, *(_cell(facts, other, axis) for other in groups)) for name, facts in groups.items()),
        )
        for axis in CURVE_AXES
        if len(groups) > 1
    ]


def _seeds(result: Mapping[str, Any]) -> Table:
    """The pairs from which the intervals are computed."""
    rows = []
    for name, facts in result["groups"].items():
        pairs = facts["difference"]["pairs"] if "difference" in facts else {}
        if len(pairs) > 1:
            rows += [(name, str(seed), format_signed(pair["difference"])) for seed, pair in pairs.items()]
    return Table(
        f"Pairs of equal seeds: loss less that of {result['baseline']}", ("run", "seed", "difference"), tuple(rows)
    )


def _progress(facts: Mapping[str, Any]) -> str:
    """Tokens trained on; of an unfinished run also the planned number."""
    tokens, planned = mean_of(facts["runs"], "train_tokens"), mean_of(facts["runs"], "planned_tokens")
    assert tokens is not None
    assert planned is not None
    if facts["is_finished"]:
        return format_count(tokens)
    return f"{format_count(tokens, planned)} of {format_count(planned)}"


def _mean_text(value: Mapping[str, float | None]) -> str:
    if value["mean"] is None:
        return NOTHING
    spread = value["standard_deviation"]
    return f"{value['mean']:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def _difference_text(difference: Mapping[str, Any]) -> str:
    """Mean difference, with its interval if there is one."""
    if difference["mean"] is None:
        return NOTHING
    text = format_signed(difference["mean"])
    if difference["interval"] is None:
        return text
    low, high = map(format_signed, difference["interval"])
    return f"{text} ({100 * difference['level']:.0f}{NARROW_SPACE}%: {low} to {high})"


def _cell(facts: Mapping[str, Any], other: str, axis: str) -> str:
    """The amount needed, also as a share of the other's whole run; or "never"."""
    if other not in facts["to_reach"]:
        return ""
    reached = facts["to_reach"][other][axis]
    if reached["amount"] is not None:
        return f"{FORMATS[axis](reached['amount'])} ({100 * reached['share']:.0f}{NARROW_SPACE}%)"
    runs = reached["runs"]
    num_reached = sum(run["amount"] is not None for run in runs)
    return f"{num_reached} of {len(runs)} seeds" if num_reached else "never"


def _or_nothing(value: float | None, format_value: Callable[[float | int], str]) -> str:
    return NOTHING if value is None else format_value(value)


def _drawn(table: Table) -> rich.table.Table:
    drawn = rich.table.Table(box=box.SIMPLE_HEAD)
    for number, heading in enumerate(table.headings):
        drawn.add_column(Text(heading), justify="left" if number == 0 else "right")
    for row in table.rows:
        drawn.add_row(*map(Text, row))  # `Text` because names of runs may look like markup
    return drawn
