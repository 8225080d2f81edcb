"""A policy as a predictor of a data set's rows: what the comparison asks, and what a folder of ours says of its
prompt."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
import torch

from reczero.data import Dataset
from reczero.errors import UserError
from reczero.evaluation.predictor import Forecast, Predictor
from reczero.files import atomic_dir, read_json, sha256, write_json
from reczero.models import PACKAGED, load_policy, resolve_model
from reczero.reasoning import Scale, Template
from reczero.recipes import Recipe, RolloutRecipe, load_recipe

from .policy import PREDICTIONS, Policy
from .probes import probe

ABOUT = "reczero.json"  # beside a model's weights: how it was prompted in training
PORTION = 256  # rows whose contexts are in memory at a time
_SLIM_PROMPT = {
    "instructions": "brief",
    "history": 4,
    "opinions": 0,
    "section_tokens": 40,
}  # what the small model can take


def open_policy(name: str, scale: Scale, device: torch.device | None = None) -> Policy:
    """A model with the prompt it was trained on: a run (its final model), a model folder of a run or of `reczero
    export`, or any other folder or name, which is asked as an untrained one (the packaged model guided). Raises
    UserError."""
    place, dtype, rollout = _found(name)
    model, tokenizer = load_policy(place, dtype=dtype)
    model.to(device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return Policy(model, tokenizer, Template(rollout.template, scale), rollout.guided, rollout.max_tokens)


def _found(name: str) -> tuple[str | Path, str, RolloutRecipe]:
    """Weights, dtype, and how to prompt."""
    path = Path(name)
    if (path / "run.json").is_file():
        if not (path / "model").is_dir():
            raise UserError(f"{path}: the run has no model yet; let `reczero train` finish first")
        path = path / "model"
    for folder in (path.parent, path.parent.parent):  # RUN/model, RUN/models/STAGE
        if path.is_dir() and (folder / "run.json").is_file() and (folder / "recipe.yaml").is_file():
            recipe = load_recipe(folder / "recipe.yaml")
            return path, recipe.model.dtype, recipe.rollout
    if (path / ABOUT).is_file():
        about = read_json(path / ABOUT)
        return path, "auto", RolloutRecipe.model_validate(about["rollout"])
    if name in PACKAGED:
        return name, "float32", RolloutRecipe.model_validate({"guided": True, "template": _SLIM_PROMPT})
    return name, "auto", RolloutRecipe()


def write_about(folder: Path, recipe: Recipe) -> None:
    """Notes in a model folder how the model was prompted."""
    write_json(folder / ABOUT, {"rollout": recipe.rollout.model_dump(mode="json")})


class LanguageModel(Predictor):
    """A policy, and the data set whose contexts it reads."""

    name = "language-model"

    def __init__(self, policy: Policy, data: Dataset, key: str = "", batch_size: int = 64, temperature: float = 1.0):
        """key: a hash of the weights and of how they are prompted. temperature: of sampled answers."""
        self.policy, self.data, self.key, self.batch_size = policy, data, key, batch_size
        self.temperature = temperature

    @classmethod
    def open(cls, name: str, data: Dataset, batch_size: int = 64) -> Self:
        """As `open_policy`."""
        place, _, rollout = _found(name)
        weights, policy = resolve_model(place), open_policy(name, data.scale)
        # Weights, configuration, tokenizer and chat template; of a hub, the name and the commit.
        files = sorted(weights.glob("*")) if isinstance(weights, Path) else []
        marks = [sha256(path) for path in files if path.suffix in (".safetensors", ".json", ".jinja")]
        marks = marks or [str(name), str(getattr(policy.model.config, "_commit_hash", None))]
        text = json.dumps([marks, rollout.model_dump(mode="json")], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cls(policy, data, key, batch_size, rollout.temperature)

    def table(self, examples: pl.DataFrame, progress: Callable[[int], None] = lambda done: None) -> pl.DataFrame:
        """The policy's greedy predictions (columns `PREDICTIONS`, and `seconds`: a row's share), a row for each
        example, in their order."""
        done = 0

        def moved(count: int) -> None:
            nonlocal done
            done += count
            progress(done)

        parts = [pl.DataFrame(schema=PREDICTIONS | {"seconds": pl.Float64()})]
        for start in range(0, examples.height, PORTION):
            part = examples[start : start + PORTION]
            contexts = self.data.contexts(self._whole(part))
            began = time.perf_counter()
            rated = part if "rating" in part.columns else part.with_columns(rating=pl.lit(None, pl.Float64))
            table = self.policy.predict(rated, contexts, self.name, self.batch_size, moved)
            parts.append(table.with_columns(seconds=pl.lit((time.perf_counter() - began) / part.height)))
        return pl.concat(parts)

    def prompts(self, examples: pl.DataFrame) -> list[str]:
        """The exact text that the model reads of each row."""
        policy = self.policy
        contexts = self.data.contexts(self._whole(examples))
        return [policy.tokenizer.decode(policy.encode(policy.template.messages(context))) for context in contexts]

    def sampled(
        self, examples: pl.DataFrame, answers: int, seed: int, progress: Callable[[int], None] = lambda done: None
    ) -> np.ndarray:
        """(rows, answers) ratings of sampled answers, NaN where one is malformed."""
        done, parts = 0, [np.zeros((0, answers))]

        def moved(count: int) -> None:
            nonlocal done
            done += count
            progress(done)

        for start in range(0, examples.height, PORTION):
            contexts = self.data.contexts(self._whole(examples[start : start + PORTION]))
            given = self.policy.sample(contexts, answers, self.temperature, seed + start, self.batch_size, moved)
            parts.append(given)
        return np.concatenate(parts)

    def probed(
        self, examples: pl.DataFrame, seed: int, progress: Callable[[int], None] = lambda done: None
    ) -> pl.DataFrame:
        """As `reczero.rollout.probes.probe`."""
        contexts = self.data.contexts(self._whole(examples))
        return probe(self.policy, examples, contexts, seed, self.batch_size, progress)

    def _whole(self, examples: pl.DataFrame) -> pl.DataFrame:
        """The rows with their histories, in the same order."""
        if {"user_history", "item_history"} <= set(examples.columns):
            return examples
        ids = examples.select("example_id")
        found = self.data.examples(cold_start=None, where=pl.col("example_id").is_in(ids["example_id"].implode()))
        return ids.join(found, on="example_id", how="left", maintain_order="left")

    def predict(self, examples: pl.DataFrame) -> Forecast:
        table = self.table(examples)
        given = table["prediction"].fill_null(float("nan")).to_numpy()
        nothing = [float("nan")] * len(self.policy.template.scale.grid())
        rows = [row or nothing for row in table["distribution"].to_list()]
        return Forecast(given, np.array(rows, float).reshape(len(rows), len(nothing)))

    def save(self, folder: Path) -> None:
        policy = self.policy
        with atomic_dir(folder) as into:
            policy.model.save_pretrained(into)
            policy.tokenizer.save_pretrained(into)
            rollout = RolloutRecipe(
                template=policy.template.settings, guided=policy.guided, max_tokens=policy.max_tokens
            )
            write_json(into / ABOUT, {"rollout": rollout.model_dump(mode="json")})

    @classmethod
    def load(cls, folder: Path, data: Dataset | None = None) -> Self:
        if data is None:
            raise UserError(f"{folder}: a language model needs the data set whose contexts it reads")
        return cls.open(str(folder), data)
