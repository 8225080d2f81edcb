"""Which rows of a data set a recipe trains, validates and tests on, and in which order it trains on them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from reczero.data import EXAMPLES, Dataset, Split, prepare_cached
from reczero.errors import UserError
from reczero.reasoning import Context

from .schema import Recipe


class NothingToLearn(UserError):
    """No rows, or no traces, are left to learn from."""


class Part(NamedTuple):
    """Rows to train, validate or test on, with their contexts."""

    examples: pl.DataFrame
    contexts: list[Context]

    def take(self, rows: Sequence[int]) -> "Part":
        return Part(self.examples[list(rows)], [self.contexts[i] for i in rows])


def prepared(recipe: Recipe) -> Dataset:
    """The recipe's data set: a prepared folder as it is, or files, prepared once in the cache for these settings."""
    name = recipe.data.dataset
    if recipe.data.source is None and (Path(name) / "dataset.json").is_file():
        return Dataset.open(Path(name))
    return prepare_cached(recipe.data.origin, recipe.data.settings)


def rows_of(
    recipe: Recipe, data: Dataset, split: Split, count: int | None, without: pl.Series | None = None
) -> pl.DataFrame:
    """`count` rows of a split (None for all) with as much context as the recipe asks for, spread over its period.

    without: example ids to leave out.
    """
    e = recipe.evaluation
    enough = (pl.col("user_count") >= e.min_user_history) & (pl.col("item_count") >= e.min_item_history)
    if without is not None:
        enough &= ~pl.col("example_id").is_in(without.implode())
    rows = data.examples(split, where=enough, limit=count)
    if rows.is_empty():
        if without is not None:
            raise NothingToLearn(f"data set {data.name}: no {split} rows with enough context are left.")
        raise UserError(f"data set {data.name}: no {split} rows with enough context; lower evaluation.min_*_history.")
    return rows


def select(recipe: Recipe, data: Dataset) -> dict[str, Part]:
    """The rows of the three splits that the recipe asks for."""
    e = recipe.evaluation
    counts: dict[Split, int | None] = {
        "train": recipe.data.train_examples,
        "validation": e.validation_examples,
        "test": e.test_examples,
    }
    rows = {split: rows_of(recipe, data, split, count) for split, count in counts.items()}
    if (found := rows["train"].height) < (step := recipe.training.groups_per_step):
        raise UserError(f"data.train_examples: {found} rows are fewer than training.groups_per_step, {step}.")
    facts = recipe.rollout.template.facts
    return {split: Part(part, data.contexts(part, facts)) for split, part in rows.items()}


def without_histories(data: Dataset, split: Split) -> pl.DataFrame:
    """All rows of a split, cold starts too, as baselines are fitted on them."""
    columns = [name for name in EXAMPLES if not name.endswith("_history")]
    return data.examples(split, cold_start=None, columns=columns)


def stratified_order(ratings: np.ndarray, strata: int, seed: int) -> np.ndarray:
    """(n,) ratings -> the order of the rows in which every `strata` in a row hold one of each stratum.

    The strata are equal parts of the rows sorted by rating, so the mean gradient is that of random batches, but a
    batch of few prompts no longer leans high or low by chance (stratified sampling; not in the paper). The rows that
    do not fill a batch come last.
    """
    draw = np.random.default_rng(seed)
    shuffled = draw.permutation(len(ratings))
    by_rating = shuffled[np.argsort(ratings[shuffled], kind="stable")]
    whole = len(ratings) // strata * strata
    left = draw.choice(len(ratings), len(ratings) - whole, replace=False)
    batches = draw.permuted(np.delete(by_rating, left).reshape(strata, -1), axis=1).T
    return np.concatenate([draw.permuted(batches, axis=1).ravel(), by_rating[left]])


def epochs_order(ratings: np.ndarray, epochs: float, strata: int, seed: int) -> np.ndarray:
    """(n,) ratings -> (n · epochs,) rows: every epoch in a new order, stratified if there is more than one stratum.

    Fixed here, and not by a sampler, so that a resumed run goes on in the order that it began with. Rows that fill no
    batch of strata are left out, but in the last epoch.
    """
    whole = len(ratings) // strata * strata
    rounds = [stratified_order(ratings, strata, seed + 7919 * i) for i in range(math.ceil(epochs))]
    rounds = [order[:whole] for order in rounds[:-1]] + rounds[-1:]
    return np.concatenate(rounds)[: max(1, round(len(ratings) * epochs))]
