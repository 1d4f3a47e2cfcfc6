"""A command's configuration: recipe, YAML file and options, each over the one before.

`tyro` makes the options from the dataclass and checks them. A recipe gives their defaults. A YAML file becomes options that
stand before those of the command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml

from cocomix.base.artifacts import CONFIG_NAME
from cocomix.base.errors import CocomixError, reason_of
from cocomix.base.numbers import parse_count

_RECIPE_HELP = "  --recipe NAME   start from this recipe; `cocomix recipes` lists them. Other options change it."
_FILE_HELP = (
    "  --config FILE   YAML file of options, nested as their names are: over the recipe's, below those given here; or a\n"
    "                  run's folder, for its config.yaml. May name its recipe as `recipe: NAME`."
)


def parse(config_class: type[Any], prog: str, description: str, arguments: Sequence[str]) -> Any:
    """The configuration that the arguments ask for.

    Raises:
        CocomixError: a recipe, a file or the whole is wrong.
        SystemExit: help was asked for and given, or an option is wrong, and `tyro` said which.
    """
    names = {field.name for field in dataclasses.fields(config_class)}
    words, values, notes = list(arguments), {}, []
    file = recipe = default = None
    if "output" in names or "run" in names:  # work with a result, worth being written down
        file, words = _taken(words, "--config")
        values = {} if file is None else read_yaml(Path(file))
        notes.append(_FILE_HELP)
    from_file = list(_as_options(values))
    if names & {"student", "run"}:
        from cocomix.training import presets

        name, words = _taken(words, "--recipe")
        name, from_file = (name, _taken(from_file, "--recipe")[1]) if name else _taken(from_file, "--recipe")
        recipe, default = presets.start(config_class, name)
        default, from_file, words = presets.with_mixer(default, from_file, words)
        notes += [_RECIPE_HELP, *presets.registered()]
    text = "\n".join([description, "", *notes]) if notes else description
    words = list(_with_whole_counts([*from_file, *words]))
    config = _parsed(config_class, default, prog, text, words, Path(file or ""), from_file)
    if default is not None:
        presets.check(recipe, config)
    return config


def _parsed(
    config_class: type[Any],
    default: Any,
    prog: str,
    description: str,
    words: Sequence[str],
    file: Path,
    from_file: Sequence[str],
) -> Any:
    """What `tyro` makes of the words; its complaint, with the file where the option comes from one."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(config_class, prog=prog, description=description, args=list(words), default=default)
    except SystemExit as stop:
        refused = _refusal(stop)
        if refused is not None:  # a value that the dataclass itself refuses, in one sentence
            raise refused from None
        said = complaint.getvalue()
        options = {word.partition("=")[0] for word in from_file if word.startswith("--")}
        if any(re.search(rf"{re.escape(option)}\b", said) for option in options):
            print(f"in {file}:", file=sys.stderr)
        print(said, end="", file=sys.stderr)
        raise


def _refusal(stop: BaseException) -> CocomixError | None:
    """The error of ours that made `tyro` stop."""
    cause = stop.__context__
    while cause is not None and not isinstance(cause, CocomixError):
        cause = cause.__context__
    return cause


def _taken(words: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """What an option is given, the last time, and the words without it."""
    value, rest, waits = None, [], False
    for word in words:
        if waits:
            value, waits = word, False
        elif word == option:
            waits = True
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    if waits:
        raise CocomixError(f"{option} is given nothing")
    return value, rest


def _with_whole_counts(words: Sequence[str]) -> Iterator[str]:
    """The words with `--num-tokens 4M`, and every other count of tokens, in digits."""
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        if option and not word.startswith("--"):
            yield _in_digits(word, option)
        elif equals and _is_count(name):
            yield f"{name}={_in_digits(value, name)}"
        else:
            yield word
        option = word if _is_count(word) else ""


def _is_count(option: str) -> bool:
    return re.fullmatch(r"--[\w.-]*tokens", option) is not None


def _in_digits(value: str, option: str) -> str:
    """Plain numbers, and no number at all, are left to `tyro`."""
    return value if value == "None" or re.fullmatch(r"[+-]?\d+", value) else str(parse_count(value, option))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or in the `config.yaml` of a run's folder.

    Raises:
        CocomixError: there is none, it can't be read, or a key is there twice.
    """
    file = path / CONFIG_NAME if path.is_dir() else path
    try:
        value = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise CocomixError(f"{file} does not exist; --config takes a YAML file, or the folder of a run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CocomixError(f"{file} can't be read: {reason_of(error)}") from error
    except yaml.YAMLError as error:
        raise CocomixError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CocomixError(f"{file} holds a {type(value).__name__}; expected options as `name: value`")
    return value


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.YAMLError(f"the key {key!r} in line {key_node.start_mark.line + 1} is no name")
            if key in mapping:
                raise yaml.YAMLError(f"the key {key!r} is there twice, again in line {key_node.start_mark.line + 1}")
            mapping[key] = None
        return dict(super().construct_mapping(node, deep))


def _as_options(values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """A mapping as the words of a command line."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        option = f"--{name}".replace("_", "-")
        if isinstance(value, dict):
            yield from _as_options(value, f"{name}.")
        elif isinstance(value, bool):
            yield option if value else f"--{prefix}no-{key}".replace("_", "-")
        elif isinstance(value, list):
            yield from (option, *map(str, value))
        else:
            yield f"{option}={value}"
