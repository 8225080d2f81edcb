"""A model by its name, with the prompt that it was trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reczero.errors import UserError
from reczero.files import read_json, write_json
from reczero.machine import multiplies_bfloat16
from reczero.models import PACKAGED, SHIPPED, load_policy
from reczero.reasoning import Scale, Template
from reczero.recipes import RolloutRecipe, load_recipe

from .policy import Policy

ABOUT = "reczero.json"  # beside a model's weights: how it was prompted in training, and for which scale
_SLIM_PROMPT = {
    "instructions": "brief",
    "history": 4,
    "opinions": 0,
    "section_tokens": 40,
}  # what the small model can take


@dataclass(frozen=True)
class Found:
    """Where the weights are, in which dtype they are loaded, how they are prompted, and, if known, for which scale and
    among which ratings it was trained: their mean is the `usual` of prompts with facts."""

    place: str | Path
    dtype: str
    rollout: RolloutRecipe
    scale: Scale | None = None
    usual: float | None = None


def find(name: str) -> Found:
    """A run (its final model), a model folder of a run or of `reczero export`, a shipped model, or any other folder or
    name, which is asked as an untrained one (the packaged model guided). No weights are looked at. Raises UserError."""
    path = SHIPPED.get(name, Path(name))
    if (path / "run.json").is_file():
        if not (path / "model").is_dir():
            raise UserError(f"{path}: the run has no model yet; let `reczero train` finish first")
        path = path / "model"
    for folder in (path.parent, path.parent.parent):  # RUN/model, RUN/models/STAGE
        if path.is_dir() and (folder / "run.json").is_file() and (folder / "recipe.yaml").is_file():
            recipe = load_recipe(folder / "recipe.yaml")
            info = read_json(folder / "run.json")
            return Found(path, recipe.model.dtype, recipe.rollout, scale_of(info), info.get("usual"))
    if (path / ABOUT).is_file():
        about = read_json(path / ABOUT)
        try:
            rollout = RolloutRecipe.model_validate(about["rollout"])
            return Found(path, "auto", rollout, scale_of(about), about.get("usual"))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path / ABOUT}: is not as `reczero export` writes it; export the run again") from error
    if name in PACKAGED:
        return Found(name, "float32", RolloutRecipe.model_validate({"guided": True, "template": _SLIM_PROMPT}))
    return Found(name, "auto", RolloutRecipe())


def open_policy(name: str, scale: Scale | None = None, device: torch.device | None = None) -> Policy:
    """The model of `find`, loaded. scale: of the ratings; by default the one it was trained for, else 1 to 5. On a
    processor that multiplies bfloat16 slowly its weights are widened to float32. Raises UserError."""
    found = find(name)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    widen = device.type == "cpu" and found.dtype != "float32" and not multiplies_bfloat16()
    model, tokenizer = load_policy(found.place, dtype="float32" if widen else found.dtype)
    model.to(device)
    template = Template(found.rollout.template, scale or found.scale or Scale())
    return Policy(model, tokenizer, template, found.rollout.guided, found.rollout.max_tokens)


def write_about(folder: Path, rollout: RolloutRecipe, scale: Scale | None, usual: float | None = None) -> None:
    """Notes in a model folder how the model was prompted."""
    about: dict[str, Any] = {"rollout": rollout.model_dump(mode="json")}
    about |= {"scale": scale.to_dict()} if scale else {}
    write_json(folder / ABOUT, about | ({"usual": usual} if usual is not None else {}))


def scale_of(info: dict[str, Any]) -> Scale | None:
    """The scale that run.json or reczero.json tells."""
    return Scale(**info["scale"]) if info.get("scale") else None
