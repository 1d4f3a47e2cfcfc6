"""A command's options as its configuration describes them: the page of `--help`, and the names that a mistyped one is near.

Fields are options, their docstrings what is said of them. Each configuration, nested ones too, names those that are `common`:
`--help` shows these, `--help-all` shows all.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from cocomix.base.errors import CocomixError
from cocomix.training.config import NOT_NEEDED, OPEN

_COLUMN, _MAX_WIDTH = 30, 110
_METAVARS = {bool: "", int: "N", float: "X", Path: "PATH"}
_KINDS = {"": "no value", "N": "a whole number", "X": "a number", "N...": "whole numbers", "X...": "numbers"}
#: How much of a name must be right, and how much less right than the nearest name another one may be.
_LIKE, _ALMOST_AS_LIKE = 0.7, 0.1


class Option(NamedTuple):
    """An option of a command."""

    names: tuple[str, ...]
    """As typed, such as `--student.layer`; of a flag also its negative. A placeholder for words without a name: `RUN...`."""
    metavar: str
    """What its value looks like; empty for a flag."""
    text: str
    default: Any
    """`dataclasses.MISSING` if it must be given."""
    is_common: bool
    group: str
    """Title of the configuration that it belongs to; empty for the command's own."""

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING or self.default == OPEN


def options_of(config: Any, prefix: str = "", group: str = "", *, is_common: bool = True) -> Iterator[Option]:
    """The options of a configuration and of those that it holds, common ones first.

    Args:
        config: its class, or an instance whose values are the defaults.
        prefix: of its options' names.
        group: title of its options.
        is_common: whether what it calls common is so for the whole command.
    """
    owner = config if isinstance(config, type) else type(config)
    texts, hints, common = _texts(owner), get_type_hints(owner, include_extras=True), getattr(owner, "common", ())
    order = {name: place for place, name in enumerate(common)}
    for field in sorted(dataclasses.fields(owner), key=lambda field: order.get(field.name, len(order))):
        hint, marks = _unwrapped(hints[field.name])
        default: Any = getattr(config, field.name, field.default)
        if default is dataclasses.MISSING and callable(field.default_factory):
            default = field.default_factory()
        text, is_shown = texts.get(field.name, ""), is_common and field.name in common
        if dataclasses.is_dataclass(default):
            is_flat = field.metadata.get("flat") or any(getattr(mark, "name", None) == "" for mark in marks)
            title = text or inspect.cleandoc(type(default).__doc__ or "")
            inner = (prefix, group) if is_flat else (f"{prefix}{field.name}.", f"{prefix}{field.name}: {title}")
            yield from options_of(default, *inner, is_common=is_shown)
            continue
        word = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), None)
        own = next((mark.name for mark in marks if getattr(mark, "name", None)), field.name)
        negative = (f"{prefix}no-{field.name}",) if hint is bool else ()
        aliases = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
        names = [f"--{name}".replace("_", "-") for name in (f"{prefix}{own}", *negative)]
        metavar = "" if word else _metavar(hint)
        yield Option((word,) if word else (*names, *aliases), metavar, text, default, is_shown, group)


def check_names(argv: Sequence[str], options: Sequence[Option], prog: str) -> None:
    """Refuse options that a command does not have.

    Raises:
        CocomixError: there is no such option; the message names the nearest.
    """
    known = {name for option in options for name in option.names}
    for argument in argv:
        name = argument.partition("=")[0].replace("_", "-")
        if re.fullmatch(r"--[\w.-]+", name) and name not in known:
            raise CocomixError(f"there is no option {name}{_nearest(name, known, prog)}")


def require_all(argv: Sequence[str], options: Sequence[Option], prog: str) -> None:
    """Refuse a command line without the options that must be given."""
    given = {argument.partition("=")[0].replace("_", "-") for argument in argv}
    required = [option.names for option in options if option.is_required and option.names[0].startswith("--")]
    missing = [names[0] for names in required if not given & {*names}]
    if missing:
        raise CocomixError(f"`{prog}` needs {' and '.join(missing)}; `{prog} --help` shows an example")


def kind_of(name: str, options: Iterable[Option]) -> str:
    """What an option takes, in words."""
    metavar = next((option.metavar for option in options if name in option.names), "")
    return _KINDS.get(metavar, metavar)


def page(prog: str, summary: str, example: str, options: Iterable[Option], more: Iterable[str], *, whole: bool) -> str:
    """The text of `--help`, or of `--help-all` if `whole`.

    Args:
        prog: the command, such as `cocomix train`.
        summary: what it does.
        example: a line to type.
        options: all of them.
        more: rows about what the configuration does not hold, in the form of `row`.
        whole: whether all options are shown.
    """
    options = list(options)
    shown = [option for option in options if whole or option.is_common]
    lines = [f"usage: {prog} [options]", "", summary, *(["", f"  {example}"] if example else [])]
    for group in dict.fromkeys(option.group for option in shown if whole):
        lines += ["", *textwrap.wrap(group, _width())]
        lines += [line for option in shown if option.group == group for line in _row_of(option)]
    if not whole:
        lines += ["", *(line for option in shown for line in _row_of(option))]
    lines += ["", *more] if more else []
    if len(shown) < len(options):
        lines += ["", f"`{prog} --help-all` shows all {len(options)} options."]
    return "\n".join(lines)


def row(name: str, text: str) -> list[str]:
    """An option and what it does, in two columns."""
    left, indent = f"  {name}", " " * _COLUMN
    lines = textwrap.wrap(text, _width(), initial_indent=indent, subsequent_indent=indent, break_long_words=False)
    if len(left) > _COLUMN - 2 or not lines:
        return [left, *lines]
    return [left + lines[0][len(left) :], *lines[1:]]


def _row_of(option: Option) -> list[str]:
    default, suffix = option.default, ""
    if option.is_required:
        suffix = " (required)"
    elif default is True:
        suffix = " (on by default)"
    elif type(default) in (int, float) or default not in (None, (), "", False, NOT_NEEDED):
        suffix = f" (default {_plain(default)})"
    name = ", ".join(option.names[:2]) if default is True else option.names[0]
    return row(f"{name} {option.metavar}".rstrip(), f"{option.text}{suffix}".strip())


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_plain, value))
    return f"{value:_}" if type(value) is int and value >= 10_000 else str(value)


def _width() -> int:
    return min(shutil.get_terminal_size().columns, _MAX_WIDTH)


def _nearest(name: str, known: Iterable[str], prog: str) -> str:
    """The end of a sentence about an unknown option: those with nearly its name, or its last part."""

    def likeness(other: str) -> float:
        pairs = ((name, other), (name.strip("-").rpartition(".")[2], other.strip("-").rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    by_likeness = sorted(((likeness(other), other) for other in sorted(known)), key=lambda pair: -pair[0])[:3]
    floor = max(_LIKE, by_likeness[0][0] - _ALMOST_AS_LIKE)
    close = [other for degree, other in by_likeness if degree >= floor]
    return f"; perhaps {' or '.join(close)}" if close else f"; `{prog} --help-all` shows all options"


def _texts(owner: type[Any]) -> dict[str, str]:
    """The docstrings of a dataclass's fields, also of inherited ones."""
    texts: dict[str, str] = {}
    for each in reversed(owner.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        except (OSError, TypeError):  # it was made by a program
            continue
        assert isinstance(tree, ast.ClassDef)
        for field, text in itertools.pairwise(tree.body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type, and what `Annotated` says of it."""
    marks: tuple[Any, ...] = getattr(hint, "__metadata__", ())
    return (hint.__origin__, marks) if marks else (hint, ())


def _metavar(hint: Any) -> str:
    """What a value of a type looks like on a command line."""
    hint, _ = _unwrapped(hint)
    arguments = [argument for argument in get_args(hint) if argument is not type(None)]
    if get_origin(hint) in (Union, UnionType):
        return _metavar(arguments[-1])
    if get_origin(hint) is Literal:
        return "|".join(map(str, arguments))
    if get_origin(hint) is tuple:
        return f"{_metavar(arguments[0])}..."
    return _METAVARS.get(hint, "TEXT")
