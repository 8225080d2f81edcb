"""A model by its name, with the prompt that it was trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reczero.errors import UserError
from reczero.files import read_json, write_json
from reczero.models import PACKAGED, load_policy
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
    """Where the weights are, in which dtype they are loaded, how they are prompted, and for which scale, if known."""

    place: str | Path
    dtype: str
    rollout: RolloutRecipe
    scale: Scale | None = None


def find(name: str) -> Found:
    """A run (its final model), a model folder of a run or of `reczero export`, or any other folder or name, which is
    asked as an untrained one (the packaged model guided). No weights are looked at. Raises UserError."""
    path = Path(name)
    if (path / "run.json").is_file():
        if not (path / "model").is_dir():
            raise UserError(f"{path}: the run has no model yet; let `reczero train` finish first")
        path = path / "model"
    for folder in (path.parent, path.parent.parent):  # RUN/model, RUN/models/STAGE
        if path.is_dir() and (folder / "run.json").is_file() and (folder / "recipe.yaml").is_file():
            recipe = load_recipe(folder / "recipe.yaml")
            return Found(path, recipe.model.dtype, recipe.rollout, scale_of(read_json(folder / "run.json")))
    if (path / ABOUT).is_file():
        about = read_json(path / ABOUT)
        try:
            return Found(path, "auto", RolloutRecipe.model_validate(about["rollout"]), scale_of(about))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path / ABOUT}: is not as `reczero export` writes it; export the run again") from error
    if name in PACKAGED:
        return Found(name, "float32", RolloutRecipe.model_validate({"guided": True, "template": _SLIM_PROMPT}))
    return Found(name, "auto", RolloutRecipe())


def open_policy(name: str, scale: Scale | None = None, device: torch.device | None = None) -> Policy:
    """The model of `find`, loaded. scale: of the ratings; by default the one it was trained for, else 1 to 5. Raises
    UserError."""
    found = find(name)
    model, tokenizer = load_policy(found.place, dtype=found.dtype)
    model.to(device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    template = Template(found.rollout.template, scale or found.scale or Scale())
    return Policy(model, tokenizer, template, found.rollout.guided, found.rollout.max_tokens)


def write_about(folder: Path, rollout: RolloutRecipe, scale: Scale | None) -> None:
    """Notes in a model folder how the model was prompted."""
    about: dict[str, Any] = {"rollout": rollout.model_dump(mode="json")}
    write_json(folder / ABOUT, about | ({"scale": scale.to_dict()} if scale else {}))


def scale_of(info: dict[str, Any]) -> Scale | None:
    """The scale that run.json or reczero.json tells."""
    return Scale(**info["scale"]) if info.get("scale") else None
