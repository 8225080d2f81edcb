"""Recipes: one YAML file says everything about a run."""

from .load import load_recipe, shipped, to_yaml
from .schema import Recipe

__all__ = ["Recipe", "load_recipe", "shipped", "to_yaml"]
