"""HTML fragments of the page, from templates that escape every value, and its style sheet.

Colours and fonts come from `base/templates/style.css`. There the system chooses light or dark; in the studio the user can
choose as well, so both sets of variables are put under the classes that NiceGUI gives the body.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from cocomix.base.formats import NARROW_SPACE
from cocomix.base.page import page_environment

#: Strengths are shown as bars up to this many usual activations.
FULL_BAR = 3.0


def render(name: str, /, **values: Any) -> Markup:
    """A fragment of the page; every value is escaped."""
    return Markup(_environment().get_template(f"{name}.html").render(**values))


@cache
def page_style() -> str:
    """The whole style sheet of the page."""
    house = _text("cocomix.base", "style.css")
    light, dark = re.findall(r":root \{([^}]*)\}", house)[:2]
    marks = "\n".join(re.findall(r"^(?:\.text|mark|\.sign|mark \.sign|\.scroll) \{[^}]*\}", house, re.MULTILINE))
    chosen = f"body.body--light {{ color-scheme: light; }}\nbody.body--dark {{ color-scheme: dark; {dark} }}\n"
    colors = f":root {{{light}}}\n{chosen}"
    return colors + marks + "\n" + _text("cocomix.studio", "studio.css")


@cache
def page_script() -> str:
    """The script of the page."""
    return _text("cocomix.studio", "studio.js")


def format_percent(share: float) -> str:
    """0.1234 as 12.3 %, with a digit more below one per cent."""
    percent = 100 * share
    return f"{percent:.{1 if percent >= 1 or percent == 0 else 2}f}{NARROW_SPACE}%"


def format_signed_short(value: float) -> str:
    """-1.25 as −1.2; small numbers with two significant digits."""
    return f"{value:.1f}".replace("-", "−") if abs(value) >= 0.1 else f"{value:.2g}".replace("-", "−")


def format_points(value: float) -> str:
    """A change in percentage points, with its sign."""
    return f"{value:+.1f}".replace("-", "−")


@cache
def _environment() -> Environment:
    environment = page_environment("cocomix.studio")
    environment.filters |= {
        "percent": format_percent,
        "points": format_points,
        "signed_short": format_signed_short,
    }
    environment.globals["bar"] = lambda strength: min(max(strength / FULL_BAR, 0.0), 1.0)
    return environment


def _text(package: str, name: str) -> str:
    return (resources.files(package) / "templates" / name).read_text(encoding="utf-8")
