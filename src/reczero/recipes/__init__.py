"""Recipes: one YAML file says everything about a run."""

from .load import load_recipe, shipped, to_yaml
from .schema import DataRecipe, EndpointRecipe, Recipe, RolloutRecipe, TeacherRecipe

__all__ = [
    "DataRecipe", "EndpointRecipe", "Recipe", "RolloutRecipe", "TeacherRecipe", "load_recipe", "shipped", "to_yaml",
]  # fmt: skip
