"""The numbers behind facts against a slow, plain count, on random data with ties, repeats, cold sides and every kind of
split; and that nothing of the present, the future or a later split is in them."""

import math
import random
import statistics
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import polars as pl
import pytest
from slow_checker import Row, may_see

from reczero.data import Dataset, Known, PrepareSettings, hint, prepare, standing
from reczero.reasoning import Fact, Item, Scale, Standing, Template, TemplateSettings

FACTS: tuple[Fact, ...] = get_args(Fact)
SCALE = Scale(0, 2, 0.1)  # tenths have no exact sums
TARGET = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "split": pl.String}
KINDS: list[dict[str, Any]] = [
    {},
    {"train": 0.4, "validation": 0.3, "test": 0.3, "users": 6},
    {"split": "leave-last-k", "leave_last": 2},
    {"split": "random", "train": 0.5, "validation": 0.25, "test": 0.25},
]


def ratings(seed: int, rows: int = 150) -> pl.DataFrame:
    """Of 9 users and 20 items, some pairs repeated; the first user and item are rated a lot, the last ones hardly."""
    rng = random.Random(seed)
    table = [
        (
            f"u{int(9 * rng.random() ** 2)}",
            f"i{int(20 * rng.random() ** 2)}",
            rng.randint(0, 20) / 10,
            rng.randint(0, 60),
        )
        for _ in range(rows)
    ]
    return pl.DataFrame(table, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")


def categories(item: str) -> list[str]:
    number = int(item[1:])
    return [name for bit, name in enumerate("abc") if number >> bit & 1]


def made(folder: Path, rows: pl.DataFrame, **settings: Any) -> Dataset:
    ids = [f"i{n}" for n in range(20)]
    schema = {"item_id": pl.String(), "title": pl.String(), "categories": pl.List(pl.String())}
    items = pl.DataFrame([(i, i, categories(i)) for i in ids], schema=schema, orient="row")
    return prepare(rows, items, SCALE, folder, PrepareSettings(min_context=0, **settings))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that small data reach."""
    for name, value in {"NEIGHBOURS": 3, "FEW": 2.0, "GROWTH": 0.1, "SLICE": 7, "CELLS": 9}.items():
        monkeypatch.setattr(hint, name, value)
    monkeypatch.setattr(standing, "SLICE", 11)


# --- the slow way -----------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """time None: as of the end; split None: everything is visible."""

    user: str | None
    item: str | None
    time: int | None
    split: str | None
    categories: list[str]


def slowly(every: list[Row], splits: dict[tuple[str, str], str], target: Target, kind: str) -> tuple[float | None, ...]:
    """item_mean, affinity, spread and hint, by the formulas of the docs."""
    past = [
        row
        for row in every
        if (target.time is None or row.timestamp < target.time)
        and (target.split is None or may_see(target.split, splits.get(row[:2]), kind))
    ]
    rows = [row for row in past if row[:2] != (target.user, target.item)]
    if not rows:
        return None, None, None, None
    usual = statistics.fmean(row.rating for row in rows)

    def mean(item: str | None, without: str | None = None) -> float:
        given = [row.rating for row in rows if row.item == item and row.user != without]
        return (sum(given) + 5 * usual) / (len(given) + 5)

    mine = [row for row in rows if row.user == target.user]
    weights, residuals = [], []
    for since, row in zip(range(len(mine), 0, -1), mine, strict=True):
        here, there = set(target.categories), set(categories(row.item))
        share = len(here & there) / len(here | there) if here | there else 0
        weights.append((0.1 + share) * (0.3 + math.exp(-since / 10)))
        residuals.append(row.rating - mean(row.item, without=row.user))
    affinity = sum(w * r for w, r in zip(weights, residuals, strict=True)) / (sum(weights) + 2)
    spread = statistics.pstdev(row.rating for row in mine) if len(mine) > 1 else None
    return mean(target.item), affinity if mine else None, spread, neighbours(past, rows, mine, target.item)


def neighbours(past: list[Row], rows: list[Row], mine: list[Row], item: str | None) -> float | None:
    size = 0
    while (larger := max(size + 1, int(size * (1 + hint.GROWTH)))) <= len(past):
        size = larger
    fitted = [row for row in past[:size] if row in rows]
    if not fitted:
        return None
    mean = statistics.fmean(row.rating for row in fitted)

    def damped(values: list[float]) -> float:
        return sum(values) / (len(values) + 5)

    items, users = {row.item for row in fitted + mine}, {row.user for row in fitted}
    of_item = {i: damped([row.rating - mean for row in fitted if row.item == i]) for i in items}
    of_user = {u: damped([row.rating - mean - of_item[row.item] for row in fitted if row.user == u]) for u in users}
    residual = {row[:2]: row.rating - mean - of_item[row.item] - of_user[row.user] for row in fitted}

    def alike(one: str | None, other: str) -> float:
        both = [u for u in of_user if (u, one) in residual and (u, other) in residual]
        product = sum(residual[u, one] * residual[u, other] for u in both)  # type: ignore[index]
        norm = math.sqrt(math.prod(sum(residual[u, i] ** 2 for u in both) for i in (one, other)))  # type: ignore[index]
        return max(0.0, round(product / norm * len(both) / (len(both) + hint.FEW), 9)) if norm else 0.0

    left = {row: row.rating - mean - of_item[row.item] for row in mine}
    own = damped(list(left.values()))
    found = sorted(((alike(item, row.item), left[row] - own) for row in mine), key=lambda pair: -pair[0])
    total = sum(weight for weight, _ in found[: hint.NEIGHBOURS])
    return sum(w * r for w, r in found[: hint.NEIGHBOURS]) / (total + 1) if total else None


def rows_of(data: Dataset) -> tuple[list[Row], dict[tuple[str, str], str]]:
    every = [Row(*row) for row in data.interactions(("user_id", "item_id", "rating", "timestamp")).iter_rows()]
    split = data.examples(cold_start=None, columns=["user_id", "item_id", "split"])
    return every, {(user, item): name for user, item, name in split.iter_rows()}


def close(found: Standing | None, expected: tuple[float | None, ...]) -> None:
    assert found is not None
    assert astuple(found) == tuple(x if x is None else pytest.approx(x, abs=1e-9) for x in expected)


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("settings", KINDS)
def test_as_a_slow_count_finds_them(tmp_path: Path, settings: dict[str, Any], seed: int) -> None:
    data = made(tmp_path / "data", ratings(seed), **settings)
    every, splits = rows_of(data)
    examples = data.examples(cold_start=None)
    found = [context.standing for context in data.contexts(examples, FACTS)]
    for row, one in zip(examples.iter_rows(named=True), found, strict=True):
        target = Target(row["user_id"], row["item_id"], row["timestamp"], row["split"], categories(row["item_id"]))
        close(one, slowly(every, splits, target, settings.get("split", "time")))
    known = [[x is not None for x in astuple(one)] for one in found if one]
    for number in zip(*known, strict=True):
        assert 0 < sum(number) < len(found)  # each is there for some, and missing for some


@pytest.mark.parametrize("settings", KINDS)
def test_they_are_the_same_whichever_rows_are_asked_for(tmp_path: Path, settings: dict[str, Any]) -> None:
    data = made(tmp_path / "data", ratings(7), **settings)
    examples = data.examples(cold_start=None)
    together = data.contexts(examples, FACTS)
    assert data.contexts(examples.reverse(), FACTS) == together[::-1]
    again = Dataset.open(data.path)
    assert [again.contexts(examples[n], FACTS)[0] for n in range(examples.height)] == together
    plain = [context.standing.hint for context in data.contexts(examples, ("affinity",)) if context.standing]
    assert plain == [None] * examples.height  # it costs time, so only where it is shown


def test_nothing_at_or_after_its_time_moves_a_number(tmp_path: Path) -> None:
    for seed in range(5):
        rows = ratings(seed)
        data = made(tmp_path / f"{seed}", rows)
        moment = data.examples(cold_start=None)["timestamp"][70]
        later = pl.col("timestamp") >= moment
        changed = rows.with_columns(rating=pl.when(later).then(2 - pl.col("rating")).otherwise("rating"))
        targets = data.examples(cold_start=None, where=pl.col("timestamp") <= moment)
        before = [context.standing for context in data.contexts(targets, FACTS)]
        other = made(tmp_path / f"{seed} changed", changed)
        assert [context.standing for context in other.contexts(targets, FACTS)] == before
        cut = made(tmp_path / f"{seed} cut", rows.filter(pl.col("timestamp") <= moment))
        assert [context.standing for context in cut.contexts(targets, FACTS)] == before
        earlier = rows.with_columns(rating=2 - pl.col("rating"))
        moved = made(tmp_path / f"{seed} earlier", earlier).contexts(targets, FACTS)
        assert [context.standing for context in moved] != before


@pytest.mark.parametrize("split", ["leave-last-k", "random"])
def test_no_row_of_a_later_split_moves_a_number(tmp_path: Path, split: str) -> None:
    data = made(tmp_path / "data", ratings(3), split=split)
    every, splits = rows_of(data)
    changed = pl.DataFrame(
        [(*row[:2], 2 - row.rating if splits[row[:2]] == "test" else row.rating, row.timestamp) for row in every],
        schema=["user_id", "item_id", "rating", "timestamp"],
        orient="row",
    )
    other = made(tmp_path / "other", changed, split=split)
    targets = data.examples(cold_start=None, where=pl.col("split") != "test")
    assert rows_of(other)[1] == splits
    assert other.contexts(targets, FACTS) == data.contexts(targets, FACTS)


def test_as_of_the_end_without_the_pairs_own_rating(tmp_path: Path) -> None:
    data = made(tmp_path / "data", ratings(1), split="leave-last-k")
    every, splits = rows_of(data)
    known = Known(data, FACTS)
    pairs = [row[:2] for row in every[::3]] + [("u8", "i0"), ("u8", "i19"), (None, "i0"), ("u0", "i18")]
    found = known.contexts(pairs)
    for (user, item), context in zip(pairs, found, strict=True):
        close(context.standing, slowly(every, splits, Target(user, item, None, None, categories(item)), "time"))
    assert known.contexts(pairs) == found  # whichever model was fitted last
    new = known.user("u0", Item("New", ("b", "a", "what nobody knows")))
    labels = ["b", "a", "what nobody knows"]
    close(new.standing, slowly(every, splits, Target("u0", None, None, None, labels), "time"))
    nowhere = pl.DataFrame({"user_id": "u0", "item_id": "nowhere", "timestamp": None, "split": None}, schema=TARGET)
    close(data.standings.of(nowhere, FACTS)[0], slowly(every, splits, Target("u0", "nowhere", None, None, []), "time"))
    assert known.usual == pytest.approx(statistics.fmean(row.rating for row in every))
    assert Known(data).user("u0").standing is None and Known(data).usual is None


def test_the_newest_row_has_the_prompt_that_its_ids_have(tmp_path: Path) -> None:
    """What is served is what was trained on, number by number."""
    rows = ratings(5, 400).unique(["user_id", "item_id"], maintain_order=True)
    rows = rows.with_columns(timestamp=pl.int_range(pl.len()))
    for size in (rows.height - 1, rows.height):  # one of them no model is fitted at
        data = made(tmp_path / f"{size}", rows[:size])
        row = data.examples("test", None).tail(1)
        if hint.fitted_at(row["timestamp"].to_numpy()) != hint.fitted_at(row["timestamp"].to_numpy() + 1):
            continue
        template = Template(TemplateSettings(facts=FACTS), SCALE)
        (trained,) = data.contexts(row, FACTS)
        (served,) = Known(data, FACTS).contexts([(row["user_id"][0], row["item_id"][0])])
        assert template.messages(served) == template.messages(trained)
        assert "Those who rate alike" in template.messages(served)[1]["content"]
        break
    else:
        raise AssertionError("no size to look at")


def test_sizes_at_which_the_model_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hint, "GROWTH", 0.5)
    before = np.array([9, 0, 1, 2, 3, 4, 5, 6, 13])  # 0, 1, 2, 3, 4, 6, 9, 13
    assert hint.fitted_at(before).tolist() == [9, 0, 1, 2, 3, 4, 4, 6, 13]
