"""Lines of code by folder: what is neither blank, comment nor docstring.

python scripts/count_lines.py [folder]
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent / "src" / "cocomix"
#: Everything but the tools, experiments and the studio.
CORE = (
    "base",
    "data",
    "mixers",
    "modeling",
    "objectives",
    "sae",
    "labels",
    "steering",
    "training",
    "evaluation",
    "cli",
)
_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}


class Count(NamedTuple):
    """Of one or more files."""

    files: int = 0
    code: int = 0
    docstring: int = 0
    comment: int = 0
    blank: int = 0

    @property
    def total(self) -> int:
        return self.code + self.docstring + self.comment + self.blank

    def plus(self, other: Count) -> Count:
        return Count(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def _docstrings(tree: ast.AST) -> Iterator[range]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            for statement in node.body:  # strings under an attribute document it, as the first one does the whole
                value = statement.value if isinstance(statement, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield range(value.lineno, (value.end_lineno or value.lineno) + 1)


def count(source: str) -> Count:
    """Count the lines of one file; a line with code and a comment is code."""
    docstring = {line for lines in _docstrings(ast.parse(source)) for line in lines}
    blank = {number for number, line in enumerate(source.splitlines(), 1) if not line.strip()} - docstring
    code: set[int] = set()
    comment: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comment.add(token.start[0])
        elif token.type not in _LAYOUT:
            code |= set(range(token.start[0], token.end[0] + 1)) - docstring - blank
    return Count(1, len(code), len(docstring), len(comment - code - docstring), len(blank))


def count_folder(folder: Path) -> Count:
    """Count all Python files under a folder."""
    total = Count()
    for path in sorted(folder.rglob("*.py")):
        total = total.plus(count(path.read_text(encoding="utf-8")))
    return total


def parts(package: Path = PACKAGE) -> dict[str, Count]:
    """The count of each folder of the package, and of the files beside them as "."."""
    found = {".": Count()}
    for path in sorted(package.iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            found[path.name] = count_folder(path)
        elif path.suffix == ".py":
            found["."] = found["."].plus(count(path.read_text(encoding="utf-8")))
    return found


def total(counts: dict[str, Count], names: tuple[str, ...] | None = None) -> Count:
    """The sum of some parts, or of all."""
    result = Count()
    for name, part in counts.items():
        if names is None or name in names:
            result = result.plus(part)
    return result


def table(counts: dict[str, Count]) -> str:
    """One row a part, the largest first, between the core and the whole."""
    rows = sorted(counts.items(), key=lambda pair: -pair[1].code)
    rows = [("core", total(counts, CORE)), *rows, ("all", total(counts))]
    lines = [f"{'part':12}" + "".join(f"{name:>10}" for name in (*Count._fields, "total"))]
    lines += [f"{name:12}" + "".join(f"{value:>10,}" for value in (*part, part.total)) for name, part in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(parts(*map(Path, sys.argv[1:]))))
