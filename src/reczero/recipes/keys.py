"""Every key of a recipe with its default and what it means, as docs/recipes.md shows them:

python -m reczero.recipes.keys > docs/recipes.md
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .schema import Recipe

_HEAD = """# The keys of a recipe

A recipe is a YAML file of these keys; what it leaves out has its default. `reczero train RECIPE key.sub=value` changes
one for a run, `--dry-run` prints what a recipe comes to, and the recipes that ship (`src/reczero/recipes/`) are there
to begin from. Unknown keys are mistakes. `model.lora` and `teacher.endpoint` are null unless they are given.

This page is made from the code: `python -m reczero.recipes.keys > docs/recipes.md`.
"""
_SECTIONS = {
    "method": "The method",
    "data": "Data: `data`",
    "model": "Model: `model`",
    "rollout": "Prompts and answers: `rollout`",
    "teacher": "Teacher: `teacher`",
    "sft": "The cold start: `sft`",
    "iterate": "Rounds: `iterate`",
    "training": "Reinforcement learning: `training`",
    "evaluation": "Evaluation: `evaluation`",
}


def page() -> str:
    """Markdown: a table of each section's keys."""
    parts = [_HEAD]
    for name, field in Recipe.model_fields.items():
        parts.append(f"## {_SECTIONS[name]}\n\n| key | values | default | |\n|---|---|---|---|")
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in _rows(name, field)) + "\n")
    return "\n".join(parts)


def _rows(path: str, field: FieldInfo) -> Iterator[tuple[str, str, str, str]]:
    kinds = [kind for kind in _options(field.annotation) if isinstance(kind, type)]
    if model := next((kind for kind in kinds if issubclass(kind, BaseModel)), None):
        for name, below in model.model_fields.items():
            yield from _rows(f"{path}.{name}", below)
    elif settings := next((kind for kind in kinds if is_dataclass(kind)), None):
        for key in fields(settings):
            yield _row(f"{path}.{key.name}", key.type, key.default, key.metadata["description"])
    else:
        default = "" if field.is_required() else field.get_default()
        yield _row(path, field.annotation, default, field.description or "")


def _row(path: str, kind: Any, default: Any, description: str) -> tuple[str, str, str, str]:
    plain = list(default) if isinstance(default, tuple) else default
    shown = "" if default == "" else yaml.safe_dump(plain, default_flow_style=True, width=1000).split("\n")[0]
    return f"`{path}`", _values(kind), f"`{shown}`" if shown else "", description.replace("|", "\\|")


def _options(kind: Any) -> tuple[Any, ...]:
    """What a union may be, without None; else the kind itself, of an annotated one what is annotated."""
    if get_origin(kind) is Annotated:
        return _options(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return tuple(one for part in get_args(kind) if part is not NoneType for one in _options(part))
    return (kind,)


def _values(kind: Any) -> str:
    named = {str: "text", int: "whole number", float: "number", bool: "true, false", Any: "anything"}
    found = []
    for one in _options(kind):
        inside = [part for part in get_args(one) if part is not Ellipsis]
        if get_origin(one) is Literal:
            found.append(", ".join(map(str, inside)))
        elif get_origin(one) in (list, tuple):
            found.append(f"list of: {_values(inside[0])}")
        elif get_origin(one) is dict:
            found.append("mapping")
        else:
            found.append(named[one])
    return " or ".join(found)


if __name__ == "__main__":
    print(page(), end="")
