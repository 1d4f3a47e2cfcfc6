"""Pages that a person reads: each is one HTML file that fetches nothing and runs nothing.

Pages share `templates/style.css` (light and dark), which a template includes. Corpus text reaches a page through one filter,
`visible`, which escapes it and makes its line ends visible, or `token`, which shows every space; everything else is escaped
by the template engine.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cocomix.base.artifacts import atomic
from cocomix.base.formats import format_count, format_flops, format_seconds, format_signed

_SIGN = '<span class="sign">{}</span>'
_SIGNS = {"\n": "⏎", " ": "␣", "\t": "⇥"}
_CONTROLS, _CONTROLS_AND_SPACES = re.compile(r"[\x00-\x08\x0a-\x1f]"), re.compile(r"[\x00-\x20]")


def page_environment(*packages: str) -> Environment:
    """An environment with the templates of `packages`, the shared templates, and filters for numbers and text.

    Args:
        packages: packages with a `templates` folder, such as `cocomix.tools.report`.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "cocomix.base")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": format_count,
        "flops": format_flops,
        "seconds": format_seconds,
        "signed": format_signed,
        "visible": visible,
        "token": functools.partial(visible, is_token=True),
    }
    return environment


def visible(text: str, *, wrap: bool = False, is_token: bool = False) -> Markup:
    """Corpus text for a page: escaped, with a sign in place of every control character except tabs.

    Args:
        text: any text.
        wrap: also break the line after the sign of a newline.
        is_token: it is a single token, in which every space and tab is shown by a sign too.
    """

    def sign(match: re.Match[str]) -> str:
        letter = match[0]
        shown = _SIGN.format(_SIGNS.get(letter) or f"^{chr(64 + ord(letter))}")
        return shown + "\n" if wrap and letter == "\n" else shown

    return Markup((_CONTROLS_AND_SPACES if is_token else _CONTROLS).sub(sign, str(escape(text))))


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic(path) as partial:
        partial.write_bytes(content)
