"""Recipes: one YAML file says everything about a run."""

from .load import load_recipe, shipped, to_yaml
from .schema import DataRecipe, EndpointRecipe, Recipe, TeacherRecipe

__all__ = ["DataRecipe", "EndpointRecipe", "Recipe", "TeacherRecipe", "load_recipe", "shipped", "to_yaml"]
