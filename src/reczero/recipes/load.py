"""Reads a recipe: a shipped name or a file, then `key.sub=value` overrides. All mistakes are reported together."""

import difflib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from reczero.errors import UserError

from .schema import Recipe


def shipped() -> dict[str, str]:
    """The recipes that come with the package: name -> text."""
    folder = files("reczero.recipes")
    return {
        f.name.removesuffix(".yaml"): f.read_text("utf-8")
        for f in sorted(folder.iterdir(), key=lambda f: f.name)
        if f.name.endswith(".yaml")
    }


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """`name` is a shipped recipe or a YAML file. Raises UserError with every mistake, one a line."""
    known = shipped()
    if str(name) in known:
        text = known[str(name)]
    else:
        try:
            text = Path(name).read_text("utf-8")
        except FileNotFoundError:
            raise UserError(f"{name}: no such recipe; give a YAML file or one of {', '.join(known)}.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: cannot be read as a recipe ({error}); give a YAML file in UTF-8.") from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{name}{where}: not YAML ({reason}); mend it.") from error
    except (ValueError, RecursionError) as error:  # a date that is none, brackets without end
        raise UserError(f"{name}: not YAML ({error}); mend it.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{name}: not a recipe; it must hold keys such as method, data, model.")
    mistakes = [m for override in overrides if (m := _override(tree, override))]
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        mistakes += [_explain(mistake) for mistake in error.errors()]
        recipe = None
    if mistakes or recipe is None:
        count = f"{len(mistakes)} mistakes" if len(mistakes) > 1 else "1 mistake"
        raise UserError(f"recipe {name}: {count}\n" + "\n".join(f"  {m}" for m in mistakes))
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """The recipe with every value written out; `load_recipe` reads it back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _override(tree: dict[str, Any], override: str) -> str | None:
    """Sets one `key.sub=value` in place; a mistake in words if it can't be."""
    path, sep, value = override.partition("=")
    keys = path.strip().split(".")
    if not sep or not all(keys):
        return f"{override}: an override is written key.sub=value"
    node: Any = tree
    for key in keys[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            return f"{override}: {key} holds a value, not keys"
    try:
        node[keys[-1]] = _number(yaml.safe_load(value))
    except (yaml.YAMLError, ValueError, RecursionError):
        return f"{override}: the value is not YAML"
    return None


def _number(value: Any) -> Any:
    """YAML 1.1 reads 2e-6 as a string; a person means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(mistake: Any) -> str:
    key = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        allowed = _keys_at(mistake["loc"][:-1])
        near = difflib.get_close_matches(str(mistake["loc"][-1]), allowed, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{key}: unknown key (value {mistake['input']!r}); {hint}allowed: {', '.join(allowed)}"
    if mistake["type"] == "missing":
        return f"{key}: is missing"
    what = mistake["msg"].removeprefix("Value error, ")
    if isinstance(mistake["input"], dict):  # a rule over several keys
        return f"{key or 'recipe'}: {what}"
    return f"{key}: {mistake['input']!r} is not allowed; {what[0].lower() + what[1:]}"


def _keys_at(path: Sequence[Any]) -> list[str]:
    """The keys that may stand under `path`, read off the schema."""
    schema = Recipe.model_json_schema()
    node = schema
    for part in path:
        node = node.get("properties", {}).get(part, {})
        options = [node, *node.get("anyOf", []), *node.get("allOf", [])]
        references = [option["$ref"] for option in options if "$ref" in option]
        if references:
            node = schema["$defs"][references[0].rsplit("/", 1)[1]]
    return sorted(node.get("properties", {}))
