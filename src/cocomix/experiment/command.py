"""`cocomix run`: the stages of an experiment, one after another.

Each stage recognises what it has finished and continues what it has begun, so the experiment itself keeps no state.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, nearest
from cocomix.base.formats import counted, format_bytes, format_seconds
from cocomix.base.progress import say
from cocomix.base.remote_code import OPTION, is_trusted
from cocomix.base.stopping import Stopped, StopRequest
from cocomix.cli.main import COMMANDS, imported
from cocomix.experiment.config import RunConfig
from cocomix.experiment.stages import COPY_NAME, Experiment, Stage, find_file, read_experiment

#: Pages that a person opens, the first that there is.
PAGES = ("report/report.html", "comparison/comparison.html", "inspection/index.html")


def run(config: RunConfig) -> Path | str:
    """Run or continue an experiment; returns the page to open, or its folder.

    With `print` it returns the text of the file, with `dry_run` nothing.

    Raises:
        CocomixError: the file is wrong, a stage's folder holds something else, or a stage fails.
        Stopped: Ctrl-C or SIGTERM, after a checkpoint.
    """
    if config.print:
        return find_file(config.file).read_text(encoding="utf-8").rstrip("\n")
    experiment = read_experiment(config)
    chosen = _chosen(experiment, config)
    _show_plan(experiment, chosen)
    experiment.check()
    if config.dry_run:
        return ""
    experiment.root.mkdir(parents=True, exist_ok=True)
    artifacts.write_yaml(experiment.root / COPY_NAME, experiment.values)
    for number, stage in enumerate(chosen, 1):
        say(f"[{number}/{len(chosen)}] {stage.title}")
        _run_stage(experiment, experiment.with_windows(stage))
    return _last_words(experiment)


def _chosen(experiment: Experiment, config: RunConfig) -> Sequence[Stage]:
    """The stages of `--only` and `--from`."""
    stages = experiment.stages
    names = {name for stage in stages for name in (stage.name, stage.section)}
    for option, given in (("--only", config.only), ("--from", (config.start,) if config.start else ())):
        for name in given:
            if name not in names:
                raise CocomixError(
                    f"{option} {name}: {experiment.file} has no stage of that name{nearest(name, names)}"
                )
    if config.start is not None:
        first = next(i for i, stage in enumerate(stages) if config.start in (stage.name, stage.section))
        stages = stages[first:]
    return [stage for stage in stages if not config.only or {stage.name, stage.section} & set(config.only)]


def _show_plan(experiment: Experiment, chosen: Sequence[Stage]) -> None:
    """What will run, what is done, and what the rest costs as far as it is known."""
    costs = {}
    if experiment.machine is not None and not all(stage.is_done(experiment.root) for stage in chosen):
        from cocomix.experiment.costs import costs_of  # loads torch

        costs = costs_of(experiment)
    say(f"{experiment.file.name}: {counted(len(chosen), 'stage')} in {experiment.root}")
    width = max((len(stage.name) for stage in chosen), default=0)
    hours, num_bytes = 0.0, 0
    for stage in chosen:
        words = f"  {stage.name:<{width}}  {stage.title}"
        if stage.is_done(experiment.root):
            words += ", done"
        elif (experiment.root / stage.name / artifacts.SETTINGS_NAME).exists():
            words += ", begun"
        if stage.name in costs and not stage.is_done(experiment.root):
            cost = costs[stage.name]
            hours, num_bytes = hours + cost.hours, num_bytes + cost.num_bytes
            words += f": {format_seconds(3600 * cost.hours)}, {format_bytes(cost.num_bytes)}"
        say(words + (f", under {stage.launch}" if stage.launch else ""))
    if hours and experiment.machine is not None:
        machine = experiment.machine
        total = f"  planned: {format_seconds(3600 * hours)} on {machine.devices} {machine.device}"
        total += f", {format_bytes(num_bytes)}"
        if machine.dollars_per_device_hour is not None:
            dollars = hours * machine.devices * machine.dollars_per_device_hour
            total += f", {dollars:,.0f} dollars at {machine.dollars_per_device_hour:g} a device and hour"
        say(f"{total}; without the stages that have no figure")


def _run_stage(experiment: Experiment, stage: Stage) -> None:
    if stage.section == "report":
        from cocomix.tools.report.report import make_report
        from cocomix.tools.report.summary import Sources

        folders = {stage.name: stage.config for stage in experiment.stages}
        inspected = folders["inspection"]
        sources = Sources(inspected.data, folders["cocomix"].labels, inspected.teacher, inspected.sae, inspected.layer)
        titles = {name: student.title for name, student in experiment.students.items()}
        make_report(experiment.root, titles, sources, int(experiment.values.get("seed", 0)))
    elif stage.launch:
        _launch(experiment, stage)
    else:
        imported(COMMANDS[stage.command].function)(stage.config)


def _launch(experiment: Experiment, stage: Stage) -> None:
    """Run a stage's command in processes of its own; SIGTERM is passed on, and a terminal sends Ctrl-C itself."""
    plugins = [word for plugin in experiment.values.get("plugins") or () for word in ("--plugin", plugin)]
    before = [*plugins, OPTION] if is_trusted() else plugins
    words = [*shlex.split(stage.launch), "-m", "cocomix.cli.main", *before, stage.command, *stage.arguments]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with StopRequest(insists=False) as stop:
        try:
            process = subprocess.Popen(words, stdout=sys.stderr.fileno(), env=os.environ | {"PATH": path})
        except OSError as error:
            raise CocomixError(f"launch: {words[0]} can't be started: {error.strerror}") from error
        is_passed_on = False
        while process.poll() is None:
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if stop.signal_number == signal.SIGTERM and not is_passed_on:
                    process.send_signal(signal.SIGTERM)
                    is_passed_on = True
    if stop.signal_number:
        raise Stopped(stop.signal_number, f"stopped in {stage.name}; the same command continues")
    if process.returncode:
        raise CocomixError(
            f"the stage {stage.name} ended with exit code {process.returncode}; what it said is above, and the same command "
            "continues"
        )


def _last_words(experiment: Experiment) -> Path:
    """Says what to do next; returns what to open."""
    names = {stage.name for stage in experiment.stages}
    if any(not student.run.student.mixer.unsteerable for student in experiment.students.values()):
        say(f"next  cocomix studio {experiment.root}")
    for page in PAGES:
        stage, _, name = page.partition("/")
        place = experiment.root / name if stage == "report" else experiment.root / page
        if stage in names and place.exists():
            return place
    return experiment.root
