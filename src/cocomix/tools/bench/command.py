"""`cocomix bench`: every case measured, or one, and what was found as tables and as JSON."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import torch

from cocomix.base.artifacts import recorded_versions, write_json
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.base.progress import say
from cocomix.tools.bench import startup
from cocomix.tools.bench.report import Section

CaseName = Literal["train", "head", "extract", "generate", "sae"]
SizeName = Literal["default", "smoke"]
FORMAT_VERSION = 1


@dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    case: tuple[CaseName, ...] = ()
    """Some of the cases; by default all of them, and the time of start-up."""
    size: SizeName = "default"
    """`default`: sizes of the paper's smallest model, some minutes a case. `smoke`: whether it runs at all."""
    threads: int = 1
    """Threads of torch; several are only of use on as many idle cores."""
    repetitions: int | None = None
    """Rounds in which contestants take turns; by default as each case says."""
    json: Path | None = None
    """File to write the result to."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "threads", "repetitions")


@runtime_checkable
class Case(Protocol):
    """What a case's module offers."""

    SIZES: Mapping[str, Any]
    """Shapes by name: dataclasses with `repetitions` among their fields."""

    def measure(self, shape: Any) -> dict[str, Any]:
        """Compare, then time; refuses with a `CocomixError` where results disagree."""

    def describe(self, result: dict[str, Any]) -> Section:
        """A stored result for reading."""


def bench(config: BenchConfig) -> str:
    """Measure, write the JSON file if one is asked for, and return the tables.

    Raises:
        CocomixError: a fast path disagrees with its reference, or something can't be measured here; no file is written. Or
            the file is a folder.
    """
    if config.json is not None:  # before minutes of measuring
        if config.json.is_dir():
            raise CocomixError(f"{config.json} is a folder; --json takes the name of a file")
        config.json.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    names = config.case or get_args(CaseName)
    result: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "command": _command(config),
        "date": datetime.now(UTC).date().isoformat(),
        "size": config.size,
        "machine": machine(),
        "versions": recorded_versions(),
        "cases": {},
    }
    for name in names:
        say(f"measuring {name}")
        case = case_named(name)
        shape = case.SIZES[config.size]
        if config.repetitions is not None:
            shape = replace(shape, repetitions=config.repetitions)
        result["cases"][name] = case.measure(shape)
    if not config.case:
        say("measuring start-up")
        result["startup"] = startup.measure()
    if config.json is not None:
        write_json(config.json, result)
    return "\n\n".join([heading(result), *(section.as_text() for section in sections(result))])


def case_named(name: str) -> Case:
    """The module of a case."""
    return cast(Case, importlib.import_module(f"cocomix.tools.bench.{name}"))


def sections(result: dict[str, Any]) -> list[Section]:
    """All that a stored result says, a section a case."""
    found = [case_named(name).describe(result["cases"][name]) for name in get_args(CaseName) if name in result["cases"]]
    return found + ([startup.describe(result["startup"])] if "startup" in result else [])


def heading(result: dict[str, Any]) -> str:
    """Where and with what a result was measured."""
    machine, versions = result["machine"], result["versions"]
    libraries = ", ".join(f"{name} {versions[name]}" for name in sorted(versions))
    return (
        f"Measured on {result['date']} on {machine['cores']} cores of {machine['processor']}, "
        f"{threads_of(machine)} of torch: {libraries}. "
        "Contestants take turns in one process; times are medians with quartiles in brackets, and ratios are medians of the "
        "ratios within each round."
    )


def threads_of(machine: Mapping[str, Any]) -> str:
    """How many threads torch had, in words."""
    return "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads"


def machine() -> dict[str, Any]:
    """The machine, as far as times depend on it."""
    return {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def _processor() -> str:
    """Its name, as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _command(config: BenchConfig) -> str:
    """What makes this result again."""
    words = ["cocomix bench"]
    for name in ("case", "size", "threads", "repetitions", "json"):
        value = getattr(config, name)
        if value != getattr(BenchConfig, name):
            words.append(f"--{name} {' '.join(value) if isinstance(value, tuple) else value}")
    return " ".join(words)
