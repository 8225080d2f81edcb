"""As-of numbers against a slow, plain count; and nothing of the present or the future in them."""

import math
import statistics

import polars as pl
import pytest
from random_data import SCALE, made

from reczero.data import Dataset, PrepareSettings, prepare
from reczero.evaluation.features import RECENT, with_features
from reczero.evaluation.predictor import FEATURE


def slowly(data: Dataset, split_of: dict, target: dict, rule) -> dict[str, float]:
    rows = data.interactions(("user_id", "item_id", "rating", "timestamp")).to_dicts()
    items = {item["item_id"]: item for item in data.items(("item_id", "title", "categories", "creator")).to_dicts()}
    rows = [row for row in rows if rule(split_of[(row["user_id"], row["item_id"])], target["split"])]

    def before(side: str, row: dict) -> list[dict]:
        return [x for x in rows if x[side] == row[side] and x["timestamp"] < row["timestamp"]]

    def mean(values: list[float]) -> float:
        return statistics.fmean(values) if values else math.nan

    def residuals(past: list[dict], other: str) -> list[float]:
        values = [row["rating"] - mean([x["rating"] for x in before(other, row)]) for row in past]
        return [value for value in values if not math.isnan(value)]

    found = {}
    for side, other in (("user", "item_id"), ("item", "user_id")):
        past = before(f"{side}_id", target)
        ratings = [row["rating"] for row in past]
        found |= {
            f"{side}_avg": mean(ratings),
            f"{side}_count": math.log1p(len(past)),
            f"{side}_spread": statistics.pstdev(ratings) if past else math.nan,
            f"{side}_recent": mean(ratings[-RECENT:]),
            f"{side}_residual": mean(residuals(past, other)),
            f"{side}_age": (target["timestamp"] - past[0]["timestamp"]) / 86_400 if past else math.nan,
        }
    past = before("user_id", target)
    item = items[target["item_id"]]
    for name, labels, of in (
        ("taste", item["categories"], lambda x: items[x["item_id"]]["categories"]),
        ("creator", [item["creator"]] if item["creator"] else [], lambda x: [items[x["item_id"]]["creator"]]),
    ):
        having = [residuals([x for x in past if label in of(x)], "item_id") for label in labels]
        found[name] = mean([mean(values) for values in having if values])
        found[f"{name}_count"] = mean([len(values) for values in having])
    found["category_share"] = found["taste_count"] / len(past) if past else math.nan
    found["taste_count"] = math.log1p(found["taste_count"])
    year = item["title"].rpartition("(")[2].rstrip(")")
    found["year"] = float(year) if year.isdigit() else math.nan
    return found


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, lambda row, target: True),
        ({"split": "leave-last-k", "leave_last": 2}, lambda row, target: row <= target),
        ({"split": "random"}, lambda row, target: row <= 0),
    ],
)
def test_as_a_slow_count_finds_them(tmp_path, settings, rule):
    data = made(tmp_path, **settings)
    order = {"train": 0, "validation": 1, "test": 2}
    examples = data.examples(cold_start=None)
    split_of = {(e["user_id"], e["item_id"]): order[e["split"]] for e in examples.iter_rows(named=True)}
    table = with_features(data, examples)
    names = [name for name in table.columns if name.startswith(FEATURE)]
    for row in table.gather_every(7).iter_rows(named=True):
        expected = slowly(data, split_of, row | {"split": order[row["split"]]}, rule)
        assert set(expected) == {name.removeprefix(FEATURE) for name in names}
        for name in names:
            assert row[name] == pytest.approx(expected[name.removeprefix(FEATURE)], abs=1e-4, nan_ok=True), name


def test_a_rating_changes_nothing_that_is_not_later(tmp_path):
    data = made(tmp_path / "a")
    rows = data.interactions(("user_id", "item_id", "rating", "timestamp"))
    middle = rows.height // 2
    moment = rows["timestamp"][middle]
    changed = rows.with_columns(
        rating=pl.when(pl.int_range(pl.len()) == middle).then(6 - pl.col("rating")).otherwise("rating")
    )
    other = prepare(
        changed, data.items(("item_id", "title", "categories", "creator")), SCALE, tmp_path / "b", PrepareSettings()
    )
    earlier = [
        with_features(d, d.examples(cold_start=None, where=pl.col("timestamp") <= moment)).drop("rating")
        for d in (data, other)
    ]
    names = [name for name in earlier[0].columns if name.startswith(FEATURE)]
    assert earlier[0].select(names).equals(earlier[1].select(names))
