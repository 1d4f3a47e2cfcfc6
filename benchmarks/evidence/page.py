"""`docs/evidence.md` from the stored results; its prose is here, its numbers are not.

python -m benchmarks.evidence --page
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.figures import curves
from benchmarks.evidence.inputs import TEACHERS
from benchmarks.evidence.statistics import Row, results_of, row_of, shares_to_match
from benchmarks.evidence.tables import ABLATION_COMPARISON, ABLATIONS, COMPARISONS, MAIN, SEEDS, SIZE, TOKENS
from benchmarks.evidence.variants import VARIANTS
from cocomix.base.formats import format_signed

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = DOCS / "evidence.md"
IMAGES = DOCS / "images"
TEMPLATE = Path(__file__).with_name("page.md")
CORPUS_NAMES = {"standard_library": "the standard library", "english": "English prose"}
NOT_RUN = "not run yet"


def write_page() -> None:
    for comparison in COMPARISONS:
        drawing = curves(*comparison)
        if drawing is not None:
            (IMAGES / f"{drawing.name}.png").write_bytes(drawing.png)
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The template with its blocks filled in."""
    text = TEMPLATE.read_text(encoding="utf-8")
    blocks = {"progress": progress(), "main": "\n".join(map(main_section, COMPARISONS)), "ablations": ablations()}
    for name, block in blocks.items():
        text = text.replace(f"<!-- {name} -->", block)
    return text


def progress() -> str:
    """How much of the tables has been run."""
    from benchmarks.evidence.tables import TABLES

    parts = []
    for name, cells in TABLES.items():
        keys = {cell.key for cell in cells()}
        parts.append(f"{sum(key.file.exists() for key in keys)} of {len(keys)} runs of the table `{name}`")
    return " and ".join(parts)


def main_section(comparison: tuple[str, str]) -> str:
    """One corpus and teacher."""
    corpus, teacher = comparison
    rows = [row_of(corpus, teacher, variant) for variant in MAIN]
    lines = [f"### {CORPUS_NAMES[corpus].capitalize()}, {teacher} teacher", "", teacher_line(corpus, teacher), ""]
    if not any(row.results for row in rows):
        return "\n".join([*lines, f"{NOT_RUN.capitalize()}.", "", command(comparison), ""])
    head = ["run", "loss by seed", "difference to NTP", "95 % interval", "bits per byte", "FLOPs, NTP = 1"]
    head += ["tokens to NTP's loss", "FLOPs to it", "shuffled concepts"]
    body = [main_row(corpus, teacher, row) for row in rows]
    lines += [table(head, body), ""]
    drawing = curves(corpus, teacher)
    if drawing is not None:
        lines += [f"![{drawing.alt}](images/{drawing.name}.png)", ""]
    return "\n".join([*lines, command(comparison), ""])


def teacher_line(corpus: str, teacher: str) -> str:
    """What the teacher is, and how it compares with its students."""
    text = f"The teacher has {TEACHERS[teacher].what}"
    facts = next((r for v in MAIN for r in results_of(corpus, teacher, v).values() if "teacher_loss" in r), None)
    if facts is not None:
        text += f"; it is at {facts['teacher_loss']:.3f} nats, and its dictionary has FVU {facts['sae_fvu']:.3f}"
    return text + "."


def main_row(corpus: str, teacher: str, row: Row) -> list[str]:
    name = f"`{row.variant}`: {VARIANTS[row.variant].what}"
    if not row.results:
        return [name, NOT_RUN, *[""] * 7]
    ntp = results_of(corpus, teacher, "ntp")
    flops = row.mean("train_flops_per_token")
    base = statistics.fmean(result["train_flops_per_token"] for result in ntp.values()) if ntp else None
    return [
        name,
        losses(row),
        "" if row.mean_difference is None else format_signed(row.mean_difference),
        interval(row),
        f"{row.mean('bits_per_byte'):.3f}",
        "" if base is None or flops is None else f"{flops / base:.2f}",
        *(shares(corpus, teacher, row.variant, axis) for axis in ("train_tokens", "train_flops")),
        probe(row, "shuffle_batch"),
    ]


def ablations() -> str:
    lines = []
    for question, variants in ABLATIONS.items():
        head = ["run", "loss by seed", "difference to NTP", "95 % interval", "shuffled concepts"]
        body = []
        for variant in variants:
            row = row_of(*ABLATION_COMPARISON, variant)
            name = f"`{variant}`: {VARIANTS[variant].what}"
            if row.results:
                difference = "" if row.mean_difference is None else format_signed(row.mean_difference)
                body.append([name, losses(row), difference, interval(row), probe(row, "shuffle_batch")])
            else:
                body.append([name, NOT_RUN, "", "", ""])
        lines += [f"**{question}**", "", table(head, body), ""]
    return "\n".join([*lines, "```\npython -m benchmarks.evidence --table ablations\n```"])


def losses(row: Row) -> str:
    return ", ".join(f"{loss:.3f}" for loss in row.losses)


def interval(row: Row) -> str:
    found = row.interval
    return "" if found is None else f"{format_signed(found[0])} to {format_signed(found[1])}"


def shares(corpus: str, teacher: str, variant: str, axis: str) -> str:
    found = shares_to_match(corpus, teacher, variant, axis)
    return ", ".join(f"{share:.0%}" for share in found)


def probe(row: Row, name: str) -> str:
    """Mean over seeds of a probe's loss change."""
    values = [result["probes"][name]["loss_delta"] for result in row.results.values() if "probes" in result]
    return format_signed(statistics.fmean(values)) if values else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def command(comparison: tuple[str, str]) -> str:
    """How to run, continue or repeat a section's cells."""
    corpus, teacher = comparison
    places = " --english DIR --task-data DIR" if corpus == "english" else ""
    cell = Cell(corpus, teacher, SIZE, "recommended", TOKENS, SEEDS[0])
    return (
        f"```\npython -m benchmarks.evidence --table main --only {corpus}/{teacher}/ {corpus}/none/{places}\n"
        f"{cell.command} --again   # one cell again, compared with its file; any other by its name\n```"
    )
