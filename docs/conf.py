"""Settings of the documentation's pages: `make docs` builds them into build/docs.

Pages are Markdown, the reference of Python comes from docstrings, and that of the command line from the commands' own help.
Nothing is fetched, neither when the pages are built nor when they are read.
"""

from __future__ import annotations

import contextlib
import io
import os

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
html_title = "cocomix"
html_copy_source = False
html_show_sourcelink = False
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# Docstrings put names in single backticks.
default_role = "code"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
suppress_warnings = ["toc.empty_glob"]


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
        cli.main([name, "--help"])
    return printed.getvalue().strip()


def setup(app: Sphinx) -> None:
    app.add_directive("commands", Commands)
