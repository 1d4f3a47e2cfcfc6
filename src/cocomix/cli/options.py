"""A command's configuration: options override the YAML file, which overrides the recipe.

`tyro` makes the options from the dataclass and checks them. A recipe gives their defaults. A YAML file is turned into
options placed before those of the command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tyro
import yaml

from cocomix.base.artifacts import CONFIG_NAME
from cocomix.base.errors import CocomixError, reason_of, shortened
from cocomix.base.numbers import parse_count

#: Longest part of a wrong value that an error shows.
MAX_SHOWN = 80
_RECIPE_HELP = "  --recipe NAME   start from this recipe; `cocomix recipes` lists them. Other options change it."
_FILE_HELP = (
    "  --config FILE   YAML file of options, nested like their names, or a run's folder, for its config.yaml. It may name\n"
    "                  a recipe as `recipe: NAME`, whose settings it overrides; options given here override both."
)


def parse(config_class: type[Any], prog: str, description: str, arguments: Sequence[str]) -> Any:
    """The configuration from the command-line arguments.

    Raises:
        CocomixError: the recipe, the file or a combination of settings is wrong.
        SystemExit: help was printed, or an option is wrong and `tyro` printed which.
    """
    _refuse_unreadable(arguments)
    names = {field.name for field in dataclasses.fields(config_class)}
    argv, from_file, notes = list(arguments), list[str](), list[str]()
    file = recipe = default = None
    if "output" in names or "run" in names:
        file, argv = pop_option(argv, "--config")
        from_file = [] if file is None else _options_in(Path(file))
        notes.append(_FILE_HELP)
    _refuse_unreadable(from_file)
    if names & {"student", "run"}:
        from cocomix.training import presets

        name, argv = pop_option(argv, "--recipe")
        name_in_file, from_file = pop_option(from_file, "--recipe")
        recipe, default = presets.start(config_class, name or name_in_file)
        default, from_file, argv = presets.with_mixer(default, from_file, argv)
        notes += [_RECIPE_HELP, *presets.registered()]
    text = "\n".join([description, "", *notes]) if notes else description
    argv = list(_with_whole_counts([*from_file, *argv]))
    config = _run_tyro(config_class, default, prog, text, argv, Path(file or ""), from_file)
    if default is not None:
        presets.check(recipe, config)
    return config


def _run_tyro(
    config_class: type[Any],
    default: Any,
    prog: str,
    description: str,
    argv: Sequence[str],
    file: Path,
    from_file: Sequence[str],
) -> Any:
    """Parse the arguments with `tyro`; its error message also names the file if the wrong option is from there."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(config_class, prog=prog, description=description, args=list(argv), default=default)
    except SystemExit as stop:
        cause = _cocomix_cause(stop)
        if cause is not None:  # the dataclass itself refused a value, in one sentence
            raise cause from None
        message = stderr.getvalue()
        options = {argument.partition("=")[0] for argument in from_file if argument.startswith("--")}
        is_from_file = any(re.search(rf"{re.escape(option)}\b", message) for option in options)
        wrong = re.search(r"parsing (--[\w.-]+)", message)
        if wrong and "set_int_max_str_digits" in message:  # Python's advice, of no use here
            place = f"in {file}, " if is_from_file else ""
            raise CocomixError(f"{place}{wrong[1]} has thousands of digits; give a smaller number") from None
        if is_from_file:
            print(f"in {file}:", file=sys.stderr)
        print(message, end="", file=sys.stderr)
        raise


def _cocomix_cause(stop: BaseException) -> CocomixError | None:
    """The `CocomixError` that made `tyro` exit, if any."""
    cause = stop.__context__
    while cause is not None and not isinstance(cause, CocomixError):
        cause = cause.__context__
    return cause


def _refuse_unreadable(argv: Sequence[str]) -> None:
    """Refuse text that no file or model can take: bytes that are not UTF-8, which Python keeps as surrogates, and NUL."""
    for argument in argv:
        shown = shortened(ascii(argument), MAX_SHOWN)
        if "\0" in argument:
            raise CocomixError(f"{shown} holds a NUL character; leave it out")
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise CocomixError(f"{shown} is not UTF-8 text; convert it, or rename the file") from None


def pop_option(argv: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """The last value of an option, None if it is not given; and the arguments without the option."""
    value, rest, needs_value = None, [], False
    for argument in argv:
        if needs_value:
            value, needs_value = argument, False
        elif argument == option:
            needs_value = True
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
        else:
            rest.append(argument)
    if needs_value:
        raise CocomixError(f"{option} needs a value")
    return value, rest


def _with_whole_counts(argv: Sequence[str]) -> Iterator[str]:
    """The arguments, with counts of tokens such as `--num-tokens 4M` written in digits."""
    option = ""
    for argument in argv:
        name, equals, value = argument.partition("=")
        if option and not argument.startswith("--"):
            yield _in_digits(argument, option)
        elif equals and _is_count(name):
            yield f"{name}={_in_digits(value, name)}"
        else:
            yield argument
        option = argument if _is_count(argument) else ""


def _is_count(option: str) -> bool:
    return re.fullmatch(r"--[\w.-]*tokens", option) is not None


def _in_digits(value: str, option: str) -> str:
    """The value in digits; plain integers and `None` are left to `tyro`."""
    return value if value == "None" or re.fullmatch(r"[+-]?\d+", value) else str(parse_count(value, option))


def _options_in(file: Path) -> list[str]:
    """The options in a YAML file, as arguments."""
    try:
        return list(as_options(read_yaml(file)))
    except RecursionError:
        raise CocomixError(f"{file} is nested too deeply") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or in the `config.yaml` of a run's folder.

    Raises:
        CocomixError: the file is missing, unreadable or not a mapping, or a key is repeated.
    """
    file = path / CONFIG_NAME if path.is_dir() else path
    try:
        value = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise CocomixError(f"{file} does not exist; --config takes a YAML file or the folder of a run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CocomixError(f"{file} can't be read: {reason_of(error)}") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError of an explicit tag, such as !!timestamp
        reason = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else reason_of(error)
        raise CocomixError(f"{file} is not valid YAML: {reason}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CocomixError(f"{file} holds a {type(value).__name__}; expected options as `name: value`")
    return value


class _Loader(yaml.SafeLoader):
    """Leaves numbers and dates as text, which `tyro` reads, and refuses repeated keys, of which YAML keeps the last."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("bool", "null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        own = [key_node for key_node, _ in node.value if key_node.tag != "tag:yaml.org,2002:merge"]
        for key_node in own:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.YAMLError(f"the key {key!r} in line {key_node.start_mark.line + 1} is not a name")
            if key in mapping:
                raise yaml.YAMLError(f"the key {key!r} is repeated in line {key_node.start_mark.line + 1}")
            mapping[key] = None
        return dict(super().construct_mapping(node, deep))


def as_options(values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """A mapping as command-line arguments."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        option = f"--{name}".replace("_", "-")
        if isinstance(value, dict):
            yield from as_options(value, f"{name}.")
        elif isinstance(value, bool):
            yield option if value else f"--{prefix}no-{key}".replace("_", "-")
        elif isinstance(value, list):
            yield from (option, *map(str, value))
        else:
            yield f"{option}={value}"
