"""Recipes: one YAML file says everything about a run."""

from .load import load_recipe, shipped, to_yaml
from .schema import DataRecipe, Recipe

__all__ = ["DataRecipe", "Recipe", "load_recipe", "shipped", "to_yaml"]
