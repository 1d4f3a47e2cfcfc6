"""`cocomix COMMAND`: each command is a configuration dataclass and a function that takes it.

Configurations live in modules that load no torch, and paths are checked before the command's own module is imported: a
mistake is refused at once. The options are the dataclass's fields, and their help its docstrings. `_guarded` is the one
place where an exception becomes a sentence and an exit code.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.base.command import CommandConfig
from cocomix.base.errors import CocomixError, nearest
from cocomix.base.host import tune_process
from cocomix.base.kinds import (
    COMPARISON,
    CONCEPT_DATASET,
    DISTILLATION_TARGETS,
    EVALUATION,
    INSPECTION,
    SPARSE_AUTOENCODER,
    STEERING_SCORE,
    TOKEN_DATASET,
    TRAINING_RUN,
)
from cocomix.base.progress import printed, say
from cocomix.base.remote_code import OPTION, trust_remote_code
from cocomix.base.stopping import Stopped
from cocomix.cli.failures import sentence_of, unforeseen

#: The commands as the overview shows them, by what they are for.
GROUPS = {
    "start": ("run",),
    "prepare": ("prepare",),
    "teach": ("train-sae", "extract", "distill-targets"),
    "train": ("train", "recipes", "plan"),
    "look": ("eval", "compare", "inspect", "generate", "steer-eval", "studio"),
    "tools": ("bench",),
}

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """A command: its summary, and where its function and its configuration are."""

    summary: str
    function: str
    """Module and name of the function."""
    config: str
    """Module and name of the configuration; importing the module loads no torch."""
    writes: str = ""
    """Kind of the folder that it makes in `output`; empty if it makes none."""


COMMANDS = {
    "run": Command(
        "a whole experiment from one file, such as demo",
        "experiment.command.run",
        "experiment.config.RunConfig",
    ),
    "prepare": Command("text to a token dataset", "data.prepare.prepare", "data.config.PrepareConfig", TOKEN_DATASET),
    "train-sae": Command(
        "sparse autoencoders on a teacher's residual stream",
        "tools.sae_card.command.train_sae",
        "sae.config.TrainSaeConfig",
        SPARSE_AUTOENCODER,
    ),
    "extract": Command(
        "concept labels of a token dataset", "labels.extract.extract", "labels.config.ExtractConfig", CONCEPT_DATASET
    ),
    "distill-targets": Command(
        "tokens drawn from a teacher's predictions, to distil from without it",
        "labels.distillation_targets.distill_targets",
        "labels.config.DistillTargetsConfig",
        DISTILLATION_TARGETS,
    ),
    "train": Command(
        "a student: CoCoMix with labels, next-token prediction without",
        "training.command.train",
        "training.config.TrainConfig",
        TRAINING_RUN,
    ),
    "recipes": Command(
        "training runs by name, and what they cost",
        "tools.plan.listing.list_recipes",
        "tools.plan.listing.RecipesConfig",
    ),
    "plan": Command(
        "what a run costs before it starts", "tools.plan.plan_table.show_plan", "tools.plan.config.PlanConfig"
    ),
    "bench": Command(
        "costs on this machine, against dense references and plain NTP",
        "tools.bench.command.bench",
        "tools.bench.config.BenchConfig",
    ),
    "eval": Command(
        "validation loss, causal probes and benchmarks of a model",
        "evaluation.command.evaluate",
        "evaluation.config.EvalConfig",
        EVALUATION,
    ),
    "inspect": Command(
        "a card for every concept of a model, and a site to read them",
        "tools.inspect.command.inspect",
        "tools.inspect.config.InspectConfig",
        INSPECTION,
    ),
    "compare": Command(
        "runs side by side: losses, the cost of reaching them, seeds",
        "tools.compare.command.compare",
        "tools.compare.command.CompareConfig",
        COMPARISON,
    ),
    "generate": Command(
        "a prompt continued, with concepts steered",
        "tools.generate.command.generate",
        "tools.generate.config.GenerateConfig",
    ),
    "steer-eval": Command(
        "how well steering works, against random concepts",
        "tools.steer_eval.command.steer_eval",
        "tools.steer_eval.config.SteerEvalConfig",
        STEERING_SCORE,
    ),
    "studio": Command(
        "a local page to see a model's concepts and steer it", "studio.command.studio", "studio.command.StudioConfig"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    return _guarded(lambda: _dispatch(argv))


def _guarded(work: Callable[[], int]) -> int:
    """The exit code of some work; whatever it raises becomes a sentence."""
    try:
        return work()
    except CocomixError as error:
        say(f"error: {sentence_of(error)}")
    except Stopped as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted; the same command continues where this one stopped")
        return EXIT_INTERRUPTED
    except Exception as error:
        # Every process prints: the first one of `torchrun` may be waiting for this one.
        print(f"error: {sentence_of(error) or unforeseen(error)}", file=sys.stderr)
    return EXIT_ERROR


def _dispatch(argv: list[str]) -> int:
    """Run what the arguments name; returns the exit code."""
    try:
        argv = _with_plugins(argv)
    except CocomixError as error:
        say(f"error: {error}")
        return EXIT_USAGE
    if not argv or argv[0] in ("-h", "--help", "--help-all"):
        printed(_overview())
        return 0 if argv else EXIT_USAGE
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"cocomix {version('cocomix')}")
        return 0
    if argv[0] == "demo":  # as version 0.1 called it
        from cocomix.cli.options import pop_option

        size, rest = pop_option(argv[1:], "--size")
        argv = ["run", "demo" if size in (None, "default") else f"demo-{size}", *rest]
    if argv[0] not in COMMANDS:
        say(f"error: there is no command {argv[0]!r}{nearest(argv[0], COMMANDS)}; `cocomix --help` describes them")
        return EXIT_USAGE
    result, following = _call(COMMANDS[argv[0]], argv[0], argv[1:])
    if os.environ.get("RANK", "0") != "0":  # only one of torchrun's processes prints
        return 0
    code = printed(result) if result else 0
    for line in following:
        say(line)
    return code


def _with_plugins(argv: list[str]) -> list[str]:
    """Do what the options before the command say, such as importing plugins; returns the remaining arguments."""
    while argv and argv[0] in ("--plugin", OPTION):
        if argv[0] == OPTION:
            trust_remote_code()
            argv = argv[1:]
            continue
        if len(argv) < 2:
            raise CocomixError("--plugin needs a value: a Python file or a module that registers something")
        import_plugin(argv[1])
        argv = argv[2:]
    return argv


def import_plugin(name: str) -> None:
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


def _call(command: Command, name: str, argv: Sequence[str]) -> tuple[str, list[str]]:
    """Parse the options and call the function; returns its result as text or JSON, and lines about what follows."""
    tune_process()
    from cocomix.cli.options import parse

    _silence_progress_of_libraries()
    description = command.summary[0].upper() + command.summary[1:] + "."
    try:
        config = parse(imported(command.config), f"cocomix {name}", description, argv)
    except CocomixError as error:
        say(f"error: {error}")
        raise SystemExit(EXIT_USAGE) from None
    from cocomix.cli.paths import check_paths  # which help does not need

    check_paths(config, command.writes)
    result = imported(command.function)(config)
    if isinstance(result, dict) and config.json:
        return json.dumps(result, indent=2), []
    return str(result) if isinstance(result, str | Path) else config.shown(result), list(_following(config))


def _following(config: CommandConfig) -> Iterator[str]:
    """What to open, and what to type next."""
    folder = getattr(config, "outputs", (getattr(config, "output", None),))[0]
    if config.opens and folder is not None and (folder / config.opens).exists():
        yield f"open  {folder / config.opens}"
    if words := config.next_command():
        yield f"next  {shlex.join(['cocomix', *map(str, words)])}"


def imported(name: str) -> Any:
    """A function or class by its module in the package and its name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(f"cocomix.{module}"), attribute)


def _silence_progress_of_libraries() -> None:
    """Turn off the progress bars of datasets and transformers, which would break up our own line.

    The libraries read these variables on import; values set by the user are kept.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        f"{group if name == names[0] else '':<9}{name:<{width}}  {COMMANDS[name].summary}"
        for group, names in GROUPS.items()
        for name in names
    ]
    return "\n".join(
        [
            "usage: cocomix COMMAND [options]",
            "",
            "Pretrain language models with continuous concepts.",
            "",
            *lines,
            "",
            "cocomix COMMAND --help shows a command's usual options, --help-all every one; cocomix --version the version.",
            "cocomix --plugin FILE.py COMMAND first imports a file that registers mixers, objectives or families.",
            f"cocomix {OPTION} COMMAND runs the Python code that comes with a model or tokenizer; by default none runs.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
