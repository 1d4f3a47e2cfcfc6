"""Settings of the documentation's pages: `make docs` builds them into build/docs.

Pages are Markdown, the reference of Python comes from docstrings, and that of the command line from the commands' own help.
Nothing is fetched, neither when the pages are built nor when they are read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import re

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

os.environ["COLUMNS"] = "100"  # the width of the commands' help
os.environ["NO_COLOR"] = "1"

from cocomix.cli import main as cli

project = "cocomix"
author = "the cocomix contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = "cocomix"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
highlight_language = "text"
toc_object_entries_show_parents = "hide"
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "settings, check_files"}
napoleon_google_docstring = True


class Commands(Directive):
    """A section for every command, with its help."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for name in cli.COMMANDS:
            section = nodes.section(ids=[name], names=[name])
            section += nodes.title(text=f"cocomix {name}")
            section += nodes.literal_block(text=_help(name), language="text")
            sections.append(section)
        return sections


def _help(name: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main([name, "--help", "--help-all"])
    return printed.getvalue().strip()


def plain_docstring(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Docstrings are plain text with names in single backticks: what else reStructuredText would read as markup is text."""
    parts = re.split(r"(`+[^`]+`+)", "\n".join(lines))
    code = ["``" + part.strip("`") + "``" for part in parts[1::2]]
    text = [re.sub(r"([|*]|_(?=\W))", r"\\\1", part) for part in parts[::2]]
    lines[:] = "".join(piece for pair in itertools.zip_longest(text, code, fillvalue="") for piece in pair).split("\n")


def no_signature(_app: Sphinx, what: str, _name: str, value: object, *_: object) -> tuple[str, str] | None:
    """Settings stand below their class, each with its default: not a second time beside its name."""
    return ("", "") if what == "class" and dataclasses.is_dataclass(value) else None


def setup(app: Sphinx) -> None:
    app.add_directive("commands", Commands)
    app.connect("autodoc-process-signature", no_signature)
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)  # before napoleon reads the sections
