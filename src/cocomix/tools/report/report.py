"""`report.html`: the report of an experiment as one self-contained file, and `summary.json` with its numbers.

Every sentence is computed from the summary, so that text and numbers always agree. `figures.py` draws the figures, and the
template arranges both.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cocomix.base import artifacts
from cocomix.base.drawing import Drawing
from cocomix.base.formats import NARROW_SPACE, format_count, format_flops, format_seconds, format_signed
from cocomix.base.hub import local_model
from cocomix.base.page import page_environment, write_file
from cocomix.mixers.mixing import MIXINGS
from cocomix.sae.find import local_path
from cocomix.tools.compare.curves import loss_at
from cocomix.tools.report.figures import curve_figures, probe_figures
from cocomix.tools.report.steering_example import steering_example
from cocomix.tools.report.summary import Sources, most_used_concepts, summarize

REPORT_NAME = "report.html"
SUMMARY_NAME = "summary.json"
FIGURES_NAME = "figures"
#: Cards that are initially open.
NUM_OPEN_CARDS = 9

PROBES = {
    "zero": "No concept is active: what the model loses without any.",
    "mean": "Every position gets the average concept vector: what it loses when concepts say nothing about their text.",
    "shuffle_batch": "Every sequence gets the concepts of another one: what it loses when they are about a different text. "
    "This decides the verdict.",
    "shuffle_position": "Every position gets the concepts of an earlier one of its own sequence: what it loses when they are "
    "about the right text but the wrong place.",
    "oracle": "The teacher’s own labels replace the strongest predictions, whose values they take: what perfect predictions "
    "would give. Labels chosen by attribution know the next token, which no student does.",
}
ATTRIBUTION = {
    "attribution": "latents that mattered most for the loss",
    "activation_value": "latents with the largest activation",
    "original": "gradient at the residual stream itself",
    "reconstruction": "gradient at the autoencoder’s reconstruction",
    "all_future": "of the summed loss of all later tokens",
    "next_token": "of the next token’s loss alone",
    "raises_loss": "those whose presence raises the loss most",
    "lowers_loss": "those whose presence lowers the loss most",
    "magnitude": "those that change the loss most, either way",
}


def make_report(root: Path, titles: Mapping[str, str], sources: Sources, seed: int) -> None:
    """Summary and report from the folders of the stages, unless they are there and tell of the same results.

    Args:
        root: folder of the experiment.
        titles: what students are called, by name; `ntp` and `cocomix` among them.
        sources: what the students were given.
        seed: of the experiment.

    Raises:
        CocomixError: a stage is missing or damaged.
    """
    sources = replace(sources, teacher=local_model(sources.teacher), sae=local_path(sources.sae))
    model, candidates = root / "cocomix", most_used_concepts(root / "inspection")
    steering_example(model, sources, root / "steering", candidates)
    summary = summarize(root, titles, sources, seed)
    stored = artifacts.read_checksums(root)
    names = [SUMMARY_NAME, REPORT_NAME, *(path.relative_to(root).as_posix() for path in root.glob(f"{FIGURES_NAME}/*"))]
    is_whole = {SUMMARY_NAME, REPORT_NAME} <= stored.keys() and stored == artifacts.checksums_of(root, names)
    if is_whole and artifacts.read_json(root / SUMMARY_NAME) == json.loads(json.dumps(summary)):
        return
    for name in (artifacts.MANIFEST_NAME, artifacts.SETTINGS_NAME):  # version 0.1 kept them for the report alone
        (root / name).unlink(missing_ok=True)
    artifacts.write_json(root / SUMMARY_NAME, summary)
    written = write_report(root, summary)
    artifacts.write_json(root / artifacts.CHECKSUMS_NAME, artifacts.checksums_of(root, [SUMMARY_NAME, *written]))


def write_report(root: Path, summary: dict[str, Any]) -> list[str]:
    """Write `report.html` and `figures/*.png`, each file atomically; returns their names.

    Args:
        root: folder of the experiment.
        summary: as `summarize` returns it.
    """
    curves, probes = curve_figures(summary), probe_figures(summary)
    files = {f"{FIGURES_NAME}/{drawing.name}.png": drawing.png for drawing in [*curves, *probes.values()]}
    files[REPORT_NAME] = _page(summary, curves, probes).encode()
    shutil.rmtree(root / FIGURES_NAME, ignore_errors=True)
    (root / FIGURES_NAME).mkdir(parents=True)
    for name, content in files.items():
        write_file(root / name, content)
    return list(files)


def headline(summary: Mapping[str, Any]) -> str:
    """The comparison at equal tokens, in one sentence."""
    ntp, cocomix = summary["ntp"], summary["cocomix"]
    difference = cocomix["validation_loss"] - ntp["validation_loss"]
    against = f"({cocomix['validation_loss']:.3f} against {ntp['validation_loss']:.3f})"
    if round(abs(difference), 3) == 0:
        loss = f"is the same as NTP’s to three decimals {against}"
    else:
        loss = f"is {abs(difference):.3f} nats {'lower' if difference < 0 else 'higher'} than NTP’s {against}"
    matched, tokens = summary["tokens_to_match_ntp"], cocomix["train_tokens"]
    if matched is None:
        match = f"it did not reach NTP’s final loss within {format_count(tokens)} tokens"
    else:
        change = format_change(matched, ntp["train_tokens"], less="fewer")
        share = f"{format_count(matched, tokens)} of {format_count(tokens)} tokens ({change})"
        match = f"it reached NTP’s final loss after {share}"
    flops, seconds = (_per_token(cocomix, name) / _per_token(ntp, name) for name in ("train_flops", "train_seconds"))
    return (
        f"With equal tokens CoCoMix’s validation loss {loss}; {match}, and spent {flops:.2g} times the training FLOPs "
        f"and {seconds:.2g} times the seconds per token."
    )


def equal_compute(summary: Mapping[str, Any]) -> str:
    """The comparison at equal FLOPs and at equal time."""
    ntp, cocomix = summary["ntp"], summary["cocomix"]
    flops, seconds = summary["flops_to_match_ntp"], summary["seconds_to_match_ntp"]
    total, time = format_flops(ntp["train_flops"]), format_seconds(ntp["train_seconds"])
    if flops is None:
        text = (
            f"Counted in compute, NTP’s whole run took {total} and {time}; CoCoMix’s "
            f"took {format_flops(cocomix['train_flops'])} and {format_seconds(cocomix['train_seconds'])} and did not reach "
            "NTP’s final loss."
        )
    else:
        text = (
            f"Counted in compute, it needed {format_flops(flops)} to get there "
            f"({format_change(flops, ntp['train_flops'], less='fewer', than=f'NTP’s whole {total}')}) and "
            f"{format_seconds(seconds)} ({format_change(seconds, ntp['train_seconds'], than=f'NTP’s {time}')})."
        )
    level = loss_at(cocomix["curve"], "train_flops", ntp["train_flops"])
    if level is not None:
        final = ntp["curve"][-1]["validation_loss"]
        text += f" When it had spent NTP’s {total}, its loss stood at {level:.3f} against NTP’s {final:.3f}."
    return text


def teacher_cost(summary: Mapping[str, Any]) -> str:
    """The costs that the other sentences leave out."""
    labels, teacher = summary["cocomix"]["teacher_flops"], summary["teacher"]
    trained = "" if teacher is None else f" ({format_flops(teacher['train_flops'])})"
    return (
        f"None of this counts the concept labels ({format_flops(labels)}), the training of the teacher{trained} or that of "
        "its autoencoder."
    )


def doubtful_time(summary: Mapping[str, Any]) -> str | None:
    """A warning if the times contradict the FLOPs."""
    ntp, cocomix = summary["ntp"], summary["cocomix"]
    if cocomix["train_flops"] <= ntp["train_flops"] or cocomix["train_seconds"] >= ntp["train_seconds"]:
        return None
    return (
        "CoCoMix took less time though it did more work, so the machine was probably busy with something else during NTP’s "
        "run: the times are not to be trusted."
    )


def best_rival(summary: Mapping[str, Any]) -> str | None:
    """The student with the lowest loss, if it is neither NTP nor CoCoMix."""
    best = min(summary["students"], key=lambda name: summary[name]["validation_loss"])
    if best in ("ntp", "cocomix"):
        return None
    return f"The lowest loss of all students is that of “{summary[best]['title']}”, {summary[best]['validation_loss']:.3f}."


def verdict(title: str, probes: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether a student uses its concepts, by `shuffle_batch` alone."""
    delta, error = probes["shuffle_batch"]["loss_delta"], probes["shuffle_batch"]["standard_error"]
    if error is None:
        return f"{title} was probed on one window, which gives no standard error: it is not shown to use its concepts."
    change = (
        f"changes the loss of {title} by {format_signed(delta)} ± {2 * error:.3f} nats a token (two standard errors)"
    )
    used = delta > 2 * error
    conclusion = "the concepts are used" if used else "the concepts are not shown to be used"
    return f"Giving every sequence the concepts of another one {change}: {conclusion}."


def format_change(value: float | int, reference: float | int, *, less: str = "less", than: str | None = None) -> str:
    """74 against 100 as "26 % less" or "26 % less than" the name of the reference."""
    percent = round(100 * (value / reference - 1))
    if percent == 0:
        return f"the same as {than}" if than else "the same"
    text = f"{abs(percent)}{NARROW_SPACE}% {less if percent < 0 else 'more'}"
    return f"{text} than {than}" if than else text


def _page(summary: Mapping[str, Any], curves: Sequence[Drawing], probes: Mapping[str, Drawing]) -> str:
    environment = page_environment("cocomix.tools.report", "cocomix.tools.sae_card")
    students = {name: summary[name] for name in summary["students"]}
    return environment.get_template(REPORT_NAME).render(
        s=summary,
        students=students,
        rows=_rows(summary),
        headline=headline(summary),
        details=[text for text in (sentence(summary) for sentence in _DETAILS) if text],
        first_curve=Markup(curves[0].svg),
        other_curves=[Markup(drawing.svg) for drawing in curves[1:]],
        probed=[
            dict(
                students[name],
                drawing=Markup(drawing.svg),
                verdict=verdict(students[name]["title"], students[name]["probes"]),
            )
            for name, drawing in probes.items()
        ],
        probe_meanings=PROBES,
        mixing=MIXINGS[summary["cocomix"]["mixing"]].summary,
        attribution_meanings=ATTRIBUTION,
        num_open_cards=NUM_OPEN_CARDS,
    )


_DETAILS = (equal_compute, doubtful_time, teacher_cost, best_rival)


def _rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table: the students in order, then the teacher, whose perplexity and bits follow from its loss."""
    students = [summary[name] for name in summary["students"]]
    lowest = min(student["validation_loss"] for student in students)
    rows = [dict(student, best=student["validation_loss"] == lowest, is_teacher=False) for student in students]
    teacher, validation = summary["teacher"], summary["corpus"]["validation"]
    if teacher is None:
        return rows
    loss = teacher["validation_loss"]
    bits_per_byte = loss / math.log(2) * validation["num_tokens"] / validation["num_bytes"]
    derived = {"title": "Teacher", "perplexity": math.exp(loss), "bits_per_byte": bits_per_byte}
    return [*rows, {**teacher, **derived, "best": False, "is_teacher": True}]


def _per_token(run: Mapping[str, Any], name: str) -> float:
    return float(run[name] / run["train_tokens"])
