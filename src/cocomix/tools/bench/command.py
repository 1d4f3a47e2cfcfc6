"""`cocomix bench`: measures all cases or some, and reports the results as tables and JSON."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, cast, get_args, runtime_checkable

import torch

from cocomix.base.artifacts import recorded_versions, write_json
from cocomix.base.devices import this_device
from cocomix.base.errors import CocomixError
from cocomix.base.progress import say
from cocomix.tools.bench import startup
from cocomix.tools.bench.config import BenchConfig, CaseName
from cocomix.tools.bench.report import Section

FORMAT_VERSION = 1


@runtime_checkable
class Case(Protocol):
    """The interface of a case's module."""

    SIZES: Mapping[str, Any]
    """Shapes by name: dataclasses with a field `repetitions`."""

    def measure(self, shape: Any) -> dict[str, Any]:
        """Compare results, then measure; raises a `CocomixError` if results disagree."""

    def describe(self, result: dict[str, Any]) -> Section:
        """A stored result as a section."""


def bench(config: BenchConfig) -> str:
    """Measure, write the JSON file if requested, and return the tables.

    Raises:
        CocomixError: a fast path disagrees with its reference, or something can't be measured here, and no file is
            written; or the file is a folder.
    """
    if config.json is not None:  # checked before minutes of measuring
        if config.json.is_dir():
            raise CocomixError(f"{config.json} is a folder; --json takes the name of a file")
        config.json.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    device = this_device(config.device)
    names = [name for name in config.case or get_args(CaseName) if _is_measured(load_case(name), config)]
    for name in set(config.case).difference(names):
        raise CocomixError(f"the case {name!r} has no size {config.size!r} on {config.device}; leave it out")
    result: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "command": _command(config),
        "date": datetime.now(UTC).date().isoformat(),
        "size": config.size,
        "machine": machine(device),
        "versions": recorded_versions(),
        "cases": {},
    }
    for name in names:
        say(f"measuring {name}")
        case = load_case(name)
        shape = case.SIZES[config.size]
        if hasattr(shape, "device"):
            shape = replace(shape, device=str(device))
        if config.repetitions is not None:
            shape = replace(shape, repetitions=config.repetitions)
        result["cases"][name] = case.measure(shape)
    if not config.case and config.device == "cpu":
        say("measuring start-up")
        result["startup"] = startup.measure()
    if config.json is not None:
        write_json(config.json, result)
    return "\n\n".join([heading(result), *(section.as_text() for section in sections(result))])


def load_case(name: str) -> Case:
    """The module of the case called `name`."""
    return cast(Case, importlib.import_module(f"cocomix.tools.bench.{name}"))


def sections(result: dict[str, Any]) -> list[Section]:
    """A section for each case of a stored result."""
    cases = [load_case(name).describe(result["cases"][name]) for name in get_args(CaseName) if name in result["cases"]]
    return cases + ([startup.describe(result["startup"])] if "startup" in result else [])


def heading(result: dict[str, Any]) -> str:
    """A paragraph on where, and with which libraries, a result was measured."""
    machine, versions = result["machine"], result["versions"]
    beside = f"{machine['accelerator']} beside " if "accelerator" in machine else ""
    libraries = ", ".join(f"{name} {versions[name]}" for name in sorted(versions))
    return (
        f"Measured on {result['date']} on {beside}{machine['cores']} cores of {machine['processor']}, "
        f"{threads_of(machine)} of torch: {libraries}. "
        "Contestants take turns in one process; times are medians with quartiles in brackets, and ratios are medians of the "
        "ratios within each round."
    )


def threads_of(machine: Mapping[str, Any]) -> str:
    """The number of torch's threads, in words."""
    return "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads"


def _is_measured(case: Case, config: BenchConfig) -> bool:
    return config.size in case.SIZES and (config.device == "cpu" or hasattr(case.SIZES[config.size], "device"))


def machine(device: torch.device) -> dict[str, Any]:
    """The properties of the machine on which times depend."""
    found = {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    """The processor's name, as reported by the system."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _command(config: BenchConfig) -> str:
    """The command that reproduces this result."""
    parts = ["cocomix bench"]
    for name in ("case", "size", "device", "threads", "repetitions", "json"):
        value = getattr(config, name)
        if value != getattr(BenchConfig, name):
            parts.append(f"--{name} {' '.join(value) if isinstance(value, tuple) else value}")
    return " ".join(parts)
