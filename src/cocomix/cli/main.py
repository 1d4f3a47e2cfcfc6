"""`cocomix COMMAND`: each command is a configuration dataclass and a function that takes it.

Only the chosen command's module is imported, so `cocomix --help` does not load torch. `tyro` makes the options and their
help from the dataclass, its defaults and the docstrings of its fields.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.base.errors import CocomixError
from cocomix.base.host import tune_process
from cocomix.base.progress import say
from cocomix.base.remote_code import OPTION, trust_remote_code
from cocomix.base.stopping import Stopped

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


@dataclass(frozen=True)
class Command:
    """A command: its summary, and the module, function and configuration class that implement it."""

    summary: str
    module: str
    function: str
    config: str
    config_module: str = ""
    """Module of the configuration, if importing it costs less than importing the function."""


COMMANDS = {
    "demo": Command(
        "the whole method on a small scale, with a report", "tools.demo.pipeline", "run_demo", "DemoConfig"
    ),
    "prepare": Command("text to a token dataset", "data.prepare", "prepare", "PrepareConfig"),
    "train-sae": Command(
        "sparse autoencoders on a teacher's residual stream", "tools.sae_card.command", "train_sae", "TrainSaeConfig"
    ),
    "extract": Command("concept labels of a token dataset", "labels.extract", "extract", "ExtractConfig"),
    "distill-targets": Command(
        "tokens drawn from a teacher's predictions, to distil from without it",
        "labels.distillation_targets",
        "distill_targets",
        "DistillTargetsConfig",
    ),
    "train": Command(
        "a student: NTP, CoCoMix, pause or distillation", "training.command", "train", "TrainConfig", "training.config"
    ),
    "recipes": Command(
        "training runs by name, and what they cost", "tools.plan.listing", "list_recipes", "RecipesConfig"
    ),
    "plan": Command("what a run costs before it starts", "tools.plan.plan_table", "show_plan", "PlanConfig"),
    "bench": Command(
        "costs on this machine, against dense references and plain NTP", "tools.bench.command", "bench", "BenchConfig"
    ),
    "eval": Command(
        "validation loss, causal probes and benchmarks of a model", "evaluation.command", "evaluate", "EvalConfig"
    ),
    "inspect": Command(
        "a card for every concept of a model, and a site to read them",
        "tools.inspect.command",
        "inspect",
        "InspectConfig",
    ),
    "compare": Command(
        "runs side by side: losses, the cost of reaching them, seeds",
        "tools.compare.command",
        "compare",
        "CompareConfig",
    ),
    "generate": Command(
        "a prompt continued, with concepts steered", "tools.generate.command", "generate", "GenerateConfig"
    ),
    "steer-eval": Command(
        "how well steering works, against random concepts", "tools.steer_eval.command", "steer_eval", "SteerEvalConfig"
    ),
    "studio": Command(
        "a local page to see a model's concepts and steer it",
        "studio.command",
        "studio",
        "StudioConfig",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        argv = _with_plugins(argv)
    except CocomixError as error:
        say(f"error: {error}")
        return EXIT_USAGE
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else EXIT_USAGE
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"cocomix {version('cocomix')}")
        return 0
    if argv[0] not in COMMANDS:
        say(f"error: there is no command {argv[0]!r}; the commands are {', '.join(COMMANDS)}")
        return EXIT_USAGE
    return _run(argv[0], argv[1:])


def _with_plugins(argv: list[str]) -> list[str]:
    """Do what the options before the command say, such as importing plugins; returns the remaining arguments."""
    while argv and argv[0] in ("--plugin", OPTION):
        if argv[0] == OPTION:
            trust_remote_code()
            argv = argv[1:]
            continue
        if len(argv) < 2:
            raise CocomixError("--plugin needs a value: a Python file or a module that registers something")
        _import_plugin(argv[1])
        argv = argv[2:]
    return argv


def _import_plugin(name: str) -> None:
    """Run a file, or import a module, that registers mixers, objectives or families."""
    if not name.endswith(".py"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise CocomixError(
                f"--plugin {name}: {error}; give a Python file, or a module that can be imported"
            ) from error
        return
    path = Path(name)
    if not path.is_file():
        raise CocomixError(f"--plugin {name}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look up their module
    spec.loader.exec_module(module)


def _run(name: str, argv: Sequence[str]) -> int:
    """Run one command, reporting expected failures in one sentence; returns the exit code."""
    try:
        result = _call(COMMANDS[name], name, argv)
    except CocomixError as error:
        say(f"error: {error}")
        return EXIT_ERROR
    except Stopped as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted; the same command continues where this one stopped")
        return EXIT_INTERRUPTED
    except Exception as error:
        if _is_disk_full(error):
            say(f"error: the disk is full ({error}); free some space and run the same command again")
            return EXIT_ERROR
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            say(f"error: {error.filename} can't be used: {error.strerror}")
            return EXIT_ERROR
        raise
    if result and os.environ.get("RANK", "0") == "0":  # only one of torchrun's processes prints
        return _print(result)
    return 0


def _print(result: str) -> int:
    """Print a result; returns the exit code."""
    try:
        print(result, flush=True)
    except BrokenPipeError:  # as in `cocomix recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush at exit succeeds
        return EXIT_BROKEN_PIPE
    return 0


def _is_disk_full(error: Exception) -> bool:
    """Whether the disk was full; libraries written in Rust report that in exceptions of their own."""
    return getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)


def _call(command: Command, name: str, argv: Sequence[str]) -> str:
    """Parse the options and call the function; returns its result as text or JSON, or the output folder."""
    tune_process()
    from cocomix.cli.options import parse

    _silence_progress_of_libraries()
    settings = importlib.import_module(f"cocomix.{command.config_module or command.module}")
    description = command.summary[0].upper() + command.summary[1:] + "."
    try:
        config = parse(getattr(settings, command.config), f"cocomix {name}", description, argv)
    except CocomixError as error:
        say(f"error: {error}")
        raise SystemExit(EXIT_USAGE) from None
    function: Callable[[Any], Any] = getattr(importlib.import_module(f"cocomix.{command.module}"), command.function)
    result = function(config)
    if isinstance(result, dict):
        return json.dumps(result, indent=2)
    return str(result if isinstance(result, str | Path) else config.output)


def _silence_progress_of_libraries() -> None:
    """Turn off the progress bars of datasets and transformers, which would break up our own line.

    The libraries read these variables on import; values set by the user are kept.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: cocomix COMMAND [options]",
            "",
            "Pretrain language models with continuous concepts.",
            "",
            *lines,
            "",
            "cocomix COMMAND --help lists the options of a command; cocomix --version shows the version.",
            "cocomix --plugin FILE.py COMMAND first imports a file that registers mixers, objectives or families.",
            f"cocomix {OPTION} COMMAND runs the Python code that comes with a model or tokenizer; by default none runs.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
