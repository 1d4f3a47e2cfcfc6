"""A command's configuration: options override the YAML file, which overrides the recipe.

`usage.py` knows the options' names and writes their help, `tyro` reads their values. A recipe gives their defaults. A
YAML file is turned into options placed before those of the command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tyro
import yaml

from cocomix.base.artifacts import CONFIG_NAME
from cocomix.base.errors import CocomixError, nearest, reason_of, shortened
from cocomix.base.numbers import parse_count
from cocomix.base.progress import printed
from cocomix.cli import usage

#: Longest part of a wrong value that an error shows.
MAX_SHOWN = 80
_RECIPE_HELP = "Start from this recipe; `cocomix recipes` lists them. Other options change it."
_FILE_HELP = "YAML file of options, or a folder for its config.yaml; options typed here override it."


def parse(config_class: type[Any], prog: str, summary: str, arguments: Sequence[str]) -> Any:
    """The configuration from the command-line arguments.

    Raises:
        CocomixError: an option, the recipe, the file or a combination of settings is wrong.
        SystemExit: help was printed.
    """
    _refuse_unreadable(arguments)
    names = {field.name for field in dataclasses.fields(config_class)}
    argv, from_file, more = list(arguments), list[str](), list[str]()
    file = recipe = default = None
    if "student" in names:
        more += usage.row("--recipe NAME", _RECIPE_HELP)
    if names & {"output", "run"}:
        file, argv = pop_option(argv, "--config")
        from_file = [] if file is None else _options_in(Path(file))
        more += usage.row("--config FILE", _FILE_HELP)
    _refuse_unreadable(from_file)
    if names & {"student", "run"}:
        from cocomix.training import presets

        name, argv = pop_option(argv, "--recipe")
        name_in_file, from_file = pop_option(from_file, "--recipe")
        recipe, default = presets.start(config_class, name or name_in_file)
        default, from_file, argv = presets.with_mixer(recipe, default, from_file, argv)
        more += presets.registered()
    options = list(usage.options_of(config_class if default is None else default))
    if asked := {"-h", "--help", "--help-all"} & {*argv}:
        example = getattr(config_class, "example", "")
        raise SystemExit(printed(usage.page(prog, summary, example, options, more, whole="--help-all" in asked)))
    argv, from_file = list(_with_whole_counts(argv)), list(_with_whole_counts(from_file))
    try:
        usage.check_names(from_file, options, prog)
    except CocomixError as error:
        raise CocomixError(f"in {file}: {error}") from None
    usage.check_names(argv, options, prog)
    if default is None:
        usage.require_all([*from_file, *argv], options, prog)
    config = _run_tyro(config_class, default, [*from_file, *argv], options, file, from_file)
    if default is not None:
        presets.check(recipe, config)
    return config


def _run_tyro(
    config_class: type[Any],
    default: Any,
    argv: Sequence[str],
    options: Sequence[usage.Option],
    file: str | None,
    from_file: Sequence[str],
) -> Any:
    """Parse the arguments with `tyro`; what it refuses is one sentence, with the file if the wrong option is from there."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(config_class, args=list(argv), default=default)
    except SystemExit as stop:
        cause = _cocomix_cause(stop)
        if cause is not None:  # the dataclass itself refused a value, in one sentence
            raise cause from None
    problem = _sentence(stderr.getvalue(), options)
    of_file = {argument.partition("=")[0] for argument in from_file if argument.startswith("--")}
    is_from_file = any(re.search(rf"{re.escape(option)}\b", problem) for option in of_file)
    raise CocomixError(f"in {file}: {problem}" if is_from_file else problem)


def _sentence(box: str, options: Sequence[usage.Option]) -> str:
    """What `tyro` says in a box, whose first part is the problem and whose others explain the option."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    problem = " ".join(itertools.takewhile(lambda line: not line.startswith("─"), lines)).rstrip(".")
    if found := re.match(r"Error parsing (--[\w.-]+): .*?('[^']*')?[^']*$", problem):
        if "set_int_max_str_digits" in problem:  # Python's advice, of no use here
            return f"{found[1]} has thousands of digits; give a smaller number"
        return f"{found[1]} is {found[2]}; it takes {usage.kind_of(found[1], options)}"
    if found := re.match(r"invalid choice '(.*)' for argument '(.*)'. Expected one of \((.*?),?\)", problem):
        choices = re.findall("[^', ]+", found[3])
        return f"{found[2]} is {found[1]!r}{nearest(found[1], choices)}"
    if found := re.match(r"Missing value for argument '(--[\w.-]+)", problem):
        return f"{found[1]} needs a value"
    if found := re.match("Unrecognized options: (.*)", problem):
        return f"nothing takes the word {found[1].split(', ')[0]!r}; options begin with --"
    return problem


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
