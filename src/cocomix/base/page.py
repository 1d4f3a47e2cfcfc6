"""Pages that a person reads: each is one HTML file that fetches nothing and runs nothing.

Pages share `templates/style.css` (light and dark), which a template includes. Corpus text reaches a page through one filter,
`visible`, which escapes it and makes its whitespace visible; everything else is escaped by the template engine.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cocomix.base.artifacts import atomic
from cocomix.base.formats import format_count, format_flops, format_seconds, format_signed

_SIGN = Markup('<span class="sign">{}</span>')


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
    }
    return environment


def visible(text: str, *, wrap: bool = False) -> Markup:
    """Corpus text for a page: escaped, with a sign in place of every control character except tabs.

    Args:
        text: any text.
        wrap: also break the line after the sign of a newline.
    """
    shown = escape(text).replace("\n", _SIGN.format("⏎") + ("\n" if wrap else ""))
    for code in range(32):
        if chr(code) not in "\t\n":
            shown = shown.replace(chr(code), _SIGN.format(f"^{chr(64 + code)}"))
    return shown


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic(path) as partial:
        partial.write_bytes(content)
