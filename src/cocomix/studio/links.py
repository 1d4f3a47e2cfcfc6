"""The state of the page as the query of its address, so that a link restores the view.

?model=demo/cocomix&prompt=def+read(&pins=12:0.4,893&mode=toward&tokens=40&temperature=0&seed=0&view=steer
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from cocomix.base.errors import CocomixError
from cocomix.steering.modes import DEFAULT_MODE

VIEWS = ("steer", "curves")
AXES = ("tokens", "flops", "seconds")
MODES = (DEFAULT_MODE, "add", "set", "scale")
MAX_TOKENS = 512
#: Each becomes up to 12 characters of the address, of which servers take 64 thousand.
MAX_LINKED_CHARS = 5_000
MAX_TEMPERATURE = 5.0


@dataclass(frozen=True)
class ViewState:
    """The state of one browser; its fields are the parameters of the address."""

    model: str = ""
    """Name of the model; empty: the first one."""
    prompt: str = ""
    pins: Mapping[str, float | None] = field(default_factory=dict)
    """Pinned concepts, by index or name, and their strengths; None: not steered."""
    mode: str = MODES[0]
    """How strengths act; see `cocomix.steer`."""
    tokens: int = 40
    """Length of a continuation."""
    temperature: float = 0.0
    """0: always the likeliest token."""
    seed: int = 0
    """Of the random draws at a positive temperature."""
    view: str = VIEWS[0]
    axis: str = AXES[0]
    """Of the loss curves."""

    def query(self) -> str:
        """The part of the address after the question mark; defaults are left out, and a prompt that no address can hold."""
        start = ViewState()
        prompt = self.prompt if len(self.prompt) <= MAX_LINKED_CHARS else ""
        values: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt,
            "pins": ",".join(_pin_text(concept, strength) for concept, strength in self.pins.items()),
            "mode": self.mode,
            "tokens": self.tokens,
            "temperature": f"{self.temperature:g}",
            "seed": self.seed,
            "view": self.view,
            "axis": self.axis,
        }
        first = {"pins": "", "temperature": f"{start.temperature:g}"}
        return urlencode({k: v for k, v in values.items() if v != first.get(k, getattr(start, k))}, safe="/:,")


def parse_query(query: Mapping[str, str]) -> tuple[ViewState, list[str]]:
    """The state in an address, and a sentence for each invalid part of it."""
    state, problems = ViewState(model=query.get("model", ""), prompt=query.get("prompt", "")), []
    readers: dict[str, Callable[[str], Any]] = {
        "pins": _pins,
        "mode": lambda text: _choice("mode", text, MODES),
        "tokens": lambda text: parse_integer("the length", text, 1, MAX_TOKENS),
        "temperature": parse_temperature,
        "seed": lambda text: parse_integer("the seed", text, 0, 2**31 - 1),
        "view": lambda text: _choice("view", text, VIEWS),
        "axis": lambda text: _choice("axis", text, AXES),
    }
    for name, reader in readers.items():
        if name in query:
            try:
                state = replace(state, **{name: reader(query[name])})
            except CocomixError as error:
                problems.append(f"In the link, {error}.")
    return state, problems


def parse_strength(text: str) -> float:
    """A typed strength, which may use a decimal comma and the minus sign −.

    Raises:
        CocomixError: it is not a finite number.
    """
    return _number("strength", text, "such as 2 or -1.5")


def parse_temperature(text: str) -> float:
    """A typed temperature from 0 to `MAX_TEMPERATURE`."""
    value = _number("the temperature", text, "such as 0 or 0.8")
    if not 0 <= value <= MAX_TEMPERATURE:
        raise CocomixError(f"the temperature {value:g} is not between 0 and {MAX_TEMPERATURE:g}")
    return value


def parse_integer(name: str, text: str, minimum: int, maximum: int) -> int:
    """A typed whole number within bounds."""
    value = _number(name, text, "such as 40")
    if value != int(value) or not minimum <= value <= maximum:
        raise CocomixError(f"{name} {text.strip()!r} is not a whole number from {minimum} to {maximum}")
    return int(value)


def _number(name: str, text: str, example: str) -> float:
    try:
        value = float(text.strip().replace("−", "-").replace(",", "."))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CocomixError(f"{name} {text.strip()!r} is not a number; give one {example}")
    return value


def _choice(name: str, text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise CocomixError(f"{name} is {text!r}; it must be one of {', '.join(allowed)}")
    return text


def _pins(text: str) -> dict[str, float | None]:
    pins: dict[str, float | None] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        concept, colon, strength = part.rpartition(":")
        pins[concept if colon else part] = parse_strength(strength) if colon else None
    return pins


def _pin_text(concept: str, strength: float | None) -> str:
    return concept if strength is None else f"{concept}:{strength:g}"
