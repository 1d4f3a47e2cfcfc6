"""Counts what each recipe costs, once, because counting needs torch and many seconds; `cocomix recipes` reads the result.

python -m cocomix.tools.plan.recipe_rows     counts all recipes again and writes `recipes.json`
"""

from __future__ import annotations

from dataclasses import asdict

from cocomix.base.artifacts import write_json
from cocomix.modeling.flops import training_flops_per_token
from cocomix.tools.plan.costs import objectives_cost
from cocomix.tools.plan.listing import ROWS_PATH, RecipeRow
from cocomix.tools.plan.teachers import teacher_of_size
from cocomix.training.recipes import RECIPES, Recipe
from cocomix.training.widths import meta_model, num_active_parameters


def recipe_row(recipe: Recipe) -> RecipeRow:
    """Count the cost of one recipe."""
    size, run = recipe.size, recipe.config()
    model = meta_model(run, size)
    teacher = teacher_of_size(size)
    cost = objectives_cost(run, teacher, size.num_concepts, size.context_length)
    student = training_flops_per_token(model, size.context_length, concept_loss_share=run.concept_loss.end)
    return RecipeRow(
        name=recipe.name,
        what=recipe.summary,
        hidden_size=run.student.hidden_size,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_active_parameters=num_active_parameters(model),
        train_flops_per_token=student + cost.student,
        teacher_flops_per_token=cost.teacher,
        num_tokens=run.num_tokens,
    )


if __name__ == "__main__":
    write_json(ROWS_PATH, {"recipes": [asdict(recipe_row(recipe)) for recipe in RECIPES.values()]})
