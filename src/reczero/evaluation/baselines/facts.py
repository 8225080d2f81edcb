"""What the facts that a prompt may show (`reczero.data.standing`) are worth by themselves, without a language model."""

from typing import ClassVar

import numpy as np
import polars as pl

from reczero.evaluation.belief import Belief
from reczero.evaluation.predictor import FACT, Baseline, Forecast
from reczero.reasoning import Fact


class Affinity(Baseline):
    """The item's damped average and the user's affinity to such items, added and clipped to the scale: what a template
    with the fact `sum` shows as "Together". Nothing is fitted but the mean that stands in for an unknown item."""

    name = "affinity"
    facts: ClassVar[tuple[Fact, ...]] = ("affinity",)
    parts: ClassVar[tuple[str, ...]] = ("item_mean", "affinity")
    columns: ClassVar[tuple[str, ...]] = tuple(FACT + name for name in parts)

    def _learn(self, rows: pl.DataFrame) -> None:
        self.mean = float(rows["rating"].to_numpy().mean())

    def _sum(self, rows: pl.DataFrame) -> np.ndarray:
        known = rows.select(pl.col(self.columns).fill_nan(None))
        first, *more = (known[FACT + name] for name in self.parts)
        total = first.fill_null(self.mean).to_numpy() + sum(x.fill_null(0.0).to_numpy() for x in more)
        return np.clip(total, self.scale.min, self.scale.max)

    def predict(self, examples: pl.DataFrame) -> Forecast:
        return Forecast(self._sum(examples))


class AffinityHint(Affinity):
    """With the collaborative hint added (`reczero.data.hint`)."""

    name = "affinity-hint"
    facts = ("affinity", "hint")
    parts = ("item_mean", "affinity", "hint")
    columns = tuple(FACT + name for name in parts)


class AffinityClasses(Affinity):
    """A logistic regression over the ratings on that sum and the spread of the user's ratings (`Belief`): what the
    profile writer believes, and a policy is taught by `sft.belief`."""

    name = "affinity-classes"
    facts: ClassVar[tuple[Fact, ...]] = ("affinity", "spread")
    columns = (*Affinity.columns, FACT + "spread")

    def _learn(self, rows: pl.DataFrame) -> None:
        super()._learn(rows)
        ratings = rows["rating"].to_numpy()
        self.belief = Belief.fit(self._sum(rows), self._spreads(rows), ratings, self.scale)

    def _spreads(self, rows: pl.DataFrame) -> list[float | None]:
        return rows[FACT + "spread"].fill_nan(None).to_list()

    def predict(self, examples: pl.DataFrame) -> Forecast:
        distribution = self.belief.of(self._sum(examples), self._spreads(examples))
        return Forecast(distribution @ np.asarray(self.scale.grid()), distribution)


class AffinityHintClasses(AffinityClasses):
    """With the collaborative hint added."""

    name = "affinity-hint-classes"
    facts = ("affinity", "hint", "spread")
    parts = AffinityHint.parts
    columns = (*AffinityHint.columns, FACT + "spread")
