"""What one accelerator shows in minutes: the tests marked `gpu`, the benchmark and, if time is left, the evidence at `base`.

    make gpu                                                on a machine with an H100 or H200
    python -m benchmarks.gpu --device cpu --size smoke      the same, rehearsed without one

Nothing is installed and nothing is fetched: `src` is put on the path, and what is missing is named before anything runs, with
the command that packs it where there is a network. Each stage is a process with a limit of its own, and what it found is
written at once, so an interrupted run leaves all that came before. The exit code is 0 if every stage that ran was green.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.common import ROOT, options, store

#: What the tests need beyond the package's own requirements.
FOR_TESTS = ("beartype>=0.21", "pytest>=8.4")
SIZES = {"paper": ("69m", "386m"), "smoke": ("smoke",)}


@dataclass(frozen=True)
class Stage:
    """A command, and the most that it may take."""

    name: str
    command: tuple[str, ...]
    seconds: int
    file: Path
    """What it writes."""
    is_extra: bool = False
    """Whether it runs only in what is left of the time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every stage; returns the exit code."""
    parser = options("gpu", __doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SIZES), default="paper", help="of the benchmark; default: %(default)s")
    help_minutes = "for all of it, of which each stage has its share; default: %(default)s"
    parser.add_argument("--minutes", type=float, default=8.0, help=help_minutes)
    given = parser.parse_args(arguments)
    started = time.monotonic()
    if missing := list(missing_requirements()):
        print(f"error: {'; '.join(missing)}.\n{how_to_carry(missing)}", file=sys.stderr)
        return 1
    found: dict[str, Any] = {"device": accelerator(given.device), "size": given.size, "stages": {}}
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages(given.device, given.size, Path(folder)):
            left = 60 * given.minutes - (time.monotonic() - started)
            limit = stage.seconds * given.minutes / 8
            if left < (limit if stage.is_extra else 5):
                found["stages"][stage.name] = {"state": "left out", "seconds": 0.0}
            else:
                print(f"{stage.name}: {' '.join(stage.command)}", file=sys.stderr, flush=True)
                found["stages"][stage.name] = run(stage, min(limit, left), given.device)
            found["seconds"] = round(time.monotonic() - started, 1)
            store(given.output, "gpu", **found)
    for name, stage in found["stages"].items():
        print(f"{stage['state']:9} {stage['seconds']:6.1f} s  {name}")
    return 0 if all(stage["state"] in ("green", "left out") for stage in found["stages"].values()) else 1


def stages(device: str, size: str, folder: Path) -> Iterator[Stage]:
    """In the order of what is learnt: whether it is right, how fast it is, how well it learns."""
    python, report = sys.executable, folder / "tests.xml"
    tests = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu", f"--junitxml={report}")
    yield Stage("tests", tests, 180, report)
    for each in SIZES[size]:
        for case in ("train", "extract", "generate"):
            if (case, each) == ("extract", "386m"):
                continue  # the teacher is that of 69m
            file = folder / f"{case}-{each}.json"
            command = ("bench", "--case", case, "--size", each, "--device", device, "--json", str(file))
            yield Stage(f"{case} {each}", (python, "-m", "cocomix.cli.main", *command), 75, file)
    if device == "cpu":
        return
    evidence = (python, "-m", "benchmarks.evidence")
    asked = subprocess.run(
        (*evidence, "--help"), cwd=ROOT, env=environment(device), capture_output=True, text=True, check=False
    )
    if "--size" in asked.stdout:
        yield Stage("evidence base", (*evidence, "--size", "base"), 120, folder / "none", is_extra=True)


def run(stage: Stage, seconds: float, device: str) -> dict[str, Any]:
    """What a stage found, and whether it ended well within its time."""
    started = time.monotonic()
    process = subprocess.Popen(
        stage.command,
        cwd=ROOT,
        env=environment(device),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
        state = "red" if process.returncode else "green"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it started too
        said, _ = process.communicate()
        state = "too long"
    found: dict[str, Any] = {"state": state, "seconds": round(time.monotonic() - started, 1)}
    if state != "green":
        found["said"] = said[-4000:]
    if stage.file.suffix == ".json" and stage.file.exists():
        found["result"] = json.loads(stage.file.read_text(encoding="utf-8"))
    elif stage.file.suffix == ".xml" and stage.file.exists():
        found["result"] = outcomes(stage.file)
        if "passed" not in found["result"].values() and state == "green":
            found["state"] = "red"  # all skipped: nothing was shown
    return found


def outcomes(report: Path) -> dict[str, str]:
    """Each test's outcome, by its name."""
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[case.attrib["name"]] = kinds[0] if kinds else "passed"
    return found


def environment(device: str) -> dict[str, str]:
    """Of every stage: the package from `src`, shapes unchecked (a compiler would trace the checks), no network."""
    own = {"PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}", "HF_HUB_OFFLINE": "1"}
    return os.environ | own | {"COCOMIX_TEST_DEVICE": device, "COCOMIX_SHAPES_UNCHECKED": "1"}


def accelerator(device: str) -> dict[str, Any]:
    """The device and what drives it."""
    import torch  # imported here, where it is known to be there

    found: dict[str, Any] = {"type": device, "torch": torch.__version__}
    if device == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"name": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return found


def missing_requirements() -> Iterator[str]:
    """What is not installed, or in another version."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in (*project["dependencies"], *FOR_TESTS):
        requirement = Requirement(line)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{line} is not installed"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} is {version}, which is not {requirement.specifier}"


def how_to_carry(missing: Sequence[str]) -> str:
    """The commands that pack what is missing, and put it on the path."""
    names = " ".join(f"'{line.split()[0]}'" for line in missing)
    return (
        "Without a network there, pack the wheels elsewhere for that machine's Python and unpack them here:\n"
        f"  pip download --only-binary=:all: --python-version {sys.version_info.major}.{sys.version_info.minor} "
        f"--constraint constraints.txt --no-deps -d wheels {names}   (and what each requires)\n"
        "  pip install --no-index --no-deps --target site wheels/*.whl; export PYTHONPATH=$PWD/site"
    )


if __name__ == "__main__":
    sys.exit(main())
