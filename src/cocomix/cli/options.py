"""A command's configuration from its words: recipe, YAML file and options, each over the one before.

`tyro` makes the options from the dataclass. It is given a draft of it, whose checks are left out and whose defaults are what
recipe and file say, so that they show in the help and only what is whole is checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from cocomix.base.errors import CocomixError
from cocomix.training.drafts import apply_yaml, fields_of, read_yaml
from cocomix.training.numbers import parse_count

_RECIPE_HELP = "Start from this recipe; `cocomix recipes` lists them. Other options change it."
_FILE_HELP = (
    "YAML file of options, nested as their names are: over the recipe's, below those given here; or a run's folder, for its "
    "config.yaml. May name its recipe as `recipe: NAME`."
)


def parse(config_class: type[Any], prog: str, description: str, words: Sequence[str]) -> Any:
    """The configuration that the words ask for.

    Raises:
        CocomixError: a name, a value or the whole is wrong.
        SystemExit: help was asked for and given.
    """
    words = [*_with_whole_counts(words)]
    takes_recipe, takes_file = _takes_recipe(config_class), _takes_file(config_class)
    fields: dict[str, Any] = {}
    recipe = None
    file = _value_of(words, "--config") if takes_file else None
    values = {} if file is None else read_yaml(Path(file))
    if takes_recipe:
        from cocomix.training.recipes import find_recipe

        name = values.pop("recipe", None)
        name = _value_of(words, "--recipe") or name
        recipe = find_recipe(str(name)) if name is not None else None
        if recipe is not None:
            fields = {key: value for key, value in fields_of(recipe.draft()).items() if value is not tyro.MISSING}
            if "recipe" in {field.name for field in dataclasses.fields(config_class)}:
                fields["recipe"] = recipe.name
    if file is not None:
        fields = apply_yaml(fields, config_class, values, Path(file))
    fields = _parse_words(config_class, fields, prog, description, words)
    if config_class.__name__ == "TrainConfig":
        from cocomix.training.recipes import finish_draft

        return finish_draft(fields, recipe)
    return config_class(**fields)


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
    """Plain numbers are left to `tyro`, with what is out of range."""
    return value if re.fullmatch(r"[+-]?\d+", value) else str(parse_count(value, option))


def _takes_recipe(config_class: type[Any]) -> bool:
    """Whether it is a training run, of which there are recipes."""
    module = sys.modules.get("cocomix.training.config")
    return module is not None and issubclass(config_class, module.TrainConfig)


def _takes_file(config_class: type[Any]) -> bool:
    """Whether it is work with a result, worth being written down, and not a question."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return "output" in names and "config" not in names


def _parse_words(
    config_class: type[Any],
    fields: dict[str, Any],
    prog: str,
    description: str,
    words: Sequence[str],
) -> dict[str, Any]:
    """Fields of the draft after `tyro` read the words; its complaint, if any, as one sentence."""
    draft_class = _draft_class(config_class)
    required = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(config_class)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                draft_class,
                prog=prog,
                description=description,
                args=list(words),
                default=draft_class(**(required | fields)),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise CocomixError(f"{_sentence(complaint.getvalue())}; see {prog} --help") from None
    return {field.name: getattr(parsed, field.name) for field in dataclasses.fields(config_class)}


def _draft_class(config_class: type[Any]) -> type[Any]:
    """The dataclass without its checks, and with options for recipe and file."""
    extra: list[Any] = []
    names = {field.name for field in dataclasses.fields(config_class)}
    if _takes_recipe(config_class) and "recipe" not in names:
        recipe_type = Annotated[str | None, tyro.conf.arg(help=_RECIPE_HELP, metavar="NAME")]
        extra.append(("recipe", recipe_type, dataclasses.field(default=None)))
    if _takes_file(config_class):
        file_type = Annotated[Path | None, tyro.conf.arg(help=_FILE_HELP, metavar="FILE")]
        extra.append(("config", file_type, dataclasses.field(default=None)))
    namespace = {"__post_init__": lambda _: None}
    return dataclasses.make_dataclass(
        config_class.__name__, extra, bases=(config_class,), frozen=True, namespace=namespace
    )


def _value_of(words: Sequence[str], option: str) -> str | None:
    """What an option is given, the last time; whether it is complete is left to `tyro`."""
    value = None
    for index, word in enumerate(words):
        if word == option:
            value = words[index + 1] if index + 1 < len(words) else None
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value


def _sentence(box: str) -> str:
    """What a box of `tyro`'s says, without its frame and the help of single options."""
    said, options, part = [], [], "said"
    lines = re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()
    # Without UTF-8 there is no frame, but a rule below the title.
    framed = [line[1:-1].rstrip() for line in lines if line.startswith("│")]
    for line in framed or lines[2:]:
        text = line.strip()
        if text and not text.strip("─-"):
            part = "help"  # behind a rule
        elif text == "Perhaps you meant:":
            part = "options"
        elif text.startswith("--") and part != "help":
            options.append(text.split()[0])
        elif part == "said" and not line.startswith("      "):
            said.append(text)
    sentence = " ".join(said).removeprefix("Error parsing ").rstrip(".:")
    sentence = sentence[:1].lower() + sentence[1:]
    if not options:
        return sentence
    return f"{sentence}{'; perhaps' if sentence.startswith('unrecognized') else ':'} {', '.join(options)}"
