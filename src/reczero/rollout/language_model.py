"""A policy as a predictor of a data set's rows: what the comparison asks."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from reczero.data import Dataset
from reczero.errors import UserError
from reczero.evaluation.predictor import Forecast, Predictor
from reczero.files import atomic_dir, sha256
from reczero.models import resolve_model
from reczero.reasoning import Context
from reczero.recipes import RolloutRecipe

from .opening import find, open_policy, write_about
from .policy import PREDICTIONS, Policy
from .probes import probe

PORTION = 256  # rows whose contexts are in memory at a time


def key_of(name: str, policy: Policy) -> str:
    """A hash of all that the answers of `open_policy(name)` depend on: weights, configuration, tokenizer and chat
    template (of a hub: the name and the commit), and how it is prompted."""
    found = find(name)
    weights = resolve_model(found.place)
    files = sorted(weights.glob("*")) if isinstance(weights, Path) else []
    marks = [sha256(path) for path in files if path.suffix in (".safetensors", ".json", ".jinja")]
    marks = marks or [str(name), str(getattr(policy.model.config, "_commit_hash", None))]
    text = json.dumps([marks, found.rollout.model_dump(mode="json"), policy.template.scale.to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
        policy = open_policy(name, data.scale)
        return cls(policy, data, key_of(name, policy), batch_size, find(name).rollout.temperature)

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
            contexts = self._contexts(part)
            began = time.perf_counter()
            rated = part if "rating" in part.columns else part.with_columns(rating=pl.lit(None, pl.Float64))
            table = self.policy.predict(rated, contexts, self.name, self.batch_size, moved)
            parts.append(table.with_columns(seconds=pl.lit((time.perf_counter() - began) / part.height)))
        return pl.concat(parts)

    def prompts(self, examples: pl.DataFrame) -> list[str]:
        """The exact text that the model reads of each row."""
        policy = self.policy
        contexts = self._contexts(examples)
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
            contexts = self._contexts(examples[start : start + PORTION])
            given = self.policy.sample(contexts, answers, self.temperature, seed + start, self.batch_size, moved)
            parts.append(given)
        return np.concatenate(parts)

    def probed(
        self, examples: pl.DataFrame, seed: int, progress: Callable[[int], None] = lambda done: None
    ) -> pl.DataFrame:
        """As `reczero.rollout.probes.probe`."""
        contexts = self._contexts(examples)
        return probe(self.policy, examples, contexts, seed, self.batch_size, progress)

    def _contexts(self, examples: pl.DataFrame) -> list[Context]:
        return self.data.contexts(self._whole(examples), self.policy.template.settings.facts)

    def _whole(self, examples: pl.DataFrame) -> pl.DataFrame:
        """The rows with their histories, in the same order."""
        if {"user_history", "item_history", "timestamp", "split"} <= set(examples.columns):
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
            write_about(into, rollout, policy.template.scale)

    @classmethod
    def load(cls, folder: Path, data: Dataset | None = None) -> Self:
        if data is None:
            raise UserError(f"{folder}: a language model needs the data set whose contexts it reads")
        return cls.open(str(folder), data)
