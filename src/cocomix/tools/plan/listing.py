"""`cocomix recipes`: all recipes, with what they train and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.table import Table

from cocomix.base.artifacts import read_json
from cocomix.base.command import CommandConfig
from cocomix.base.formats import format_count, format_flops
from cocomix.tools.tables import rendered_text

#: File written by `recipe_rows.py`.
ROWS_PATH = Path(__file__).with_name("recipes.json")


@dataclass(frozen=True)
class RecipesConfig(CommandConfig):
    """Options of the list of recipes."""

    json: bool = False
    """Print JSON instead of a table."""

    example: ClassVar[str] = "cocomix recipes"
    common: ClassVar[Sequence[str]] = ("json",)


@dataclass(frozen=True)
class RecipeRow:
    """The numbers of one recipe, at its own vocabulary, context and number of concepts."""

    name: str
    what: str
    hidden_size: int
    num_parameters: int
    num_active_parameters: int
    train_flops_per_token: float
    """Training FLOPs per token (algorithmic) of the student and the head of hidden regression."""
    teacher_flops_per_token: float
    """Additional FLOPs per token of the size's teacher, for labels or targets."""
    num_tokens: int


def list_recipes(config: RecipesConfig) -> str | dict[str, Any]:
    """All recipes, as a table or, with `json`, as a dictionary."""
    rows = [RecipeRow(**row) for row in read_json(ROWS_PATH)["recipes"]]
    if config.json:
        return {"recipes": [asdict(row) for row in rows]}
    table = Table("recipe", "what", box=None, pad_edge=False)
    for name in ("width", "parameters", "active", "FLOPs a token", "teacher’s", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = rows[0].name
    for row in rows:
        if row.name.split("-")[1] != previous.split("-")[1]:
            table.add_row()
        table.add_row(
            row.name,
            row.what,
            f"{row.hidden_size}",
            format_count(row.num_parameters),
            format_count(row.num_active_parameters),
            format_flops(row.train_flops_per_token),
            format_flops(row.teacher_flops_per_token) if row.teacher_flops_per_token else "",
            format_count(row.num_tokens),
        )
        previous = row.name
    return rendered_text(table)
