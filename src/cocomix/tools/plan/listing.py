"""`cocomix recipes`: every recipe with what it trains and what that costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from cocomix.base.artifacts import read_json
from cocomix.base.formats import format_count, format_flops
from cocomix.base.tables import rendered_text

#: Written by `recipe_rows.py`.
ROWS_PATH = Path(__file__).with_name("recipes.json")


@dataclass(frozen=True)
class RecipesConfig:
    """How to list them."""

    json: bool = False
    """Print JSON in place of a table."""


@dataclass(frozen=True)
class RecipeRow:
    """One recipe in numbers, at its own vocabulary, context and number of concepts."""

    name: str
    what: str
    hidden_size: int
    num_parameters: int
    num_active_parameters: int
    train_flops_per_token: float
    """Of the student (algorithmic), and of the head of hidden regression."""
    teacher_flops_per_token: float
    """Of the teacher of the recipe's size on top, for labels or targets."""
    num_tokens: int


def list_recipes(config: RecipesConfig) -> str | dict[str, Any]:
    """All recipes: a table, or with `json` a dictionary."""
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
