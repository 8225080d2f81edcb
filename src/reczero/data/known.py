"""A data set as of its end: what is known of a user and of items now, for predictions of what comes next."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import polars as pl

from reczero.errors import NotFound
from reczero.reasoning import Context, Item

from .dataset import EXAMPLES, Dataset

PRIOR = 5.0  # ratings of the overall mean that an item's average is damped with when candidates are chosen


class Known:
    """Contexts as of the end of `data`: all of its ratings are the past.

    Of the user's own rating of the item in question, if there is one, neither side knows anything.
    """

    def __init__(self, data: Dataset):
        self.data, self.scale = data, data.scale

    @cached_property
    def _ratings(self) -> pl.DataFrame:
        """Every rating by (time, user, item), with its row; ids as categories: some 30 bytes a rating."""
        columns = ["user_id", "item_id", "rating", "timestamp"]
        rows = self.data.interactions(columns).with_row_index("row")
        return rows.with_columns(pl.col("user_id", "item_id").cast(pl.Categorical), pl.col("row").cast(pl.Int64))

    @cached_property
    def titles(self) -> pl.DataFrame:
        """item_id, title, and count: how often it was rated; the most often rated first."""
        counts = self._ratings.group_by(pl.col("item_id").cast(pl.String)).agg(count=pl.len())
        items = self.data.items(["item_id", "title"]).join(counts, on="item_id", how="left")
        return items.with_columns(pl.col("count").fill_null(0)).sort(["count", "item_id"], descending=[True, False])

    @cached_property
    def users(self) -> pl.DataFrame:
        """user_id and count, the most active first."""
        counts = self._ratings.group_by(pl.col("user_id").cast(pl.String)).agg(count=pl.len())
        return counts.sort(["count", "user_id"], descending=[True, False])

    def find_users(self, text: str, limit: int) -> list[dict[str, object]]:
        """Users whose id begins with `text`, then those that hold it, the most active first."""
        return _matching(self.users, ["user_id"], text, limit)

    def find_items(self, text: str, limit: int) -> list[dict[str, object]]:
        """Items whose title or id holds `text`, whatever its case."""
        return _matching(self.titles, ["title", "item_id"], text, limit)

    def has_user(self, user_id: str) -> bool:
        return bool((self.users["user_id"] == user_id).any())

    def missing_items(self, item_ids: Sequence[str]) -> list[str]:
        """Those of `item_ids` that the data set does not know."""
        return sorted(set(item_ids) - set(self.titles["item_id"]))

    def candidates(self, user_id: str | None, count: int) -> list[str]:
        """The `count` items with the highest average, damped by `PRIOR` ratings of the overall mean, that the user has
        not rated."""
        mean = pl.col("rating").mean().over(pl.lit(0))
        rows = self._ratings.with_columns(mean=mean)
        damped = (pl.col("rating").sum() + PRIOR * pl.col("mean").first()) / (pl.len() + PRIOR)
        ranked = rows.group_by(pl.col("item_id").cast(pl.String)).agg(damped=damped, count=pl.len())
        if user_id is not None:
            ranked = ranked.join(self._of("user_id", [user_id]), on="item_id", how="anti")
        return ranked.sort(["damped", "count", "item_id"], descending=[True, True, False])["item_id"][:count].to_list()

    def contexts(self, user_id: str | None, item_ids: Sequence[str]) -> list[Context]:
        """One for each item, in their order, with the newest entries of both sides. Without a user, one of whom nothing
        is known. Raises NotFound for ids that the data set does not have."""
        if not item_ids:
            return []
        if user_id is not None and not self.has_user(user_id):
            raise NotFound(f"no user {user_id!r} in the data set")
        if unknown := self.missing_items(item_ids):
            raise NotFound(f"no item {unknown[0]!r} in the data set")
        mine = self._of("user_id", [] if user_id is None else [user_id])
        theirs = self._of("item_id", item_ids).partition_by("item_id", as_dict=True)
        nothing = mine.clear()
        rows = []
        for item in item_ids:
            others = theirs.get((item,), nothing)
            others = others.filter(pl.col("user_id") != user_id) if user_id is not None else others
            rows.append(
                {"item_id": item} | self._side(mine.filter(pl.col("item_id") != item), "user", "item_id")
                | self._side(others, "item", "user_id")
            )  # fmt: skip
        schema = {name: EXAMPLES[name] for name in rows[0]}
        return self.data.contexts(pl.DataFrame(rows, schema=schema))

    def user(self, user_id: str) -> Context:
        """What is known of a user; the item is a blank. Raises NotFound."""
        if not self.has_user(user_id):
            raise NotFound(f"no user {user_id!r} in the data set")
        row = {"item_id": self.titles["item_id"][0]} | self._side(self._of("user_id", [user_id]), "user", "item_id")
        row |= {"item_history": [], "item_avg": None, "item_count": 0}
        (made,) = self.data.contexts(pl.DataFrame([row], schema={name: EXAMPLES[name] for name in row}))
        return replace(made, item=Item(""))

    def _of(self, side: str, ids: Sequence[str]) -> pl.DataFrame:
        rows = self._ratings.filter(pl.col(side).is_in(list(ids)))
        return rows.with_columns(pl.col("user_id", "item_id").cast(pl.String))

    def _side(self, rows: pl.DataFrame, side: str, other: str) -> dict[str, object]:
        newest = rows.tail(self.data.info["settings"]["history"])
        return {
            f"{side}_history": newest.select("row", other, "rating", "timestamp").to_dicts(),
            f"{side}_avg": rows["rating"].mean() if rows.height else None,
            f"{side}_count": rows.height,
        }


def _matching(table: pl.DataFrame, columns: Sequence[str], text: str, limit: int) -> list[dict[str, object]]:
    wanted = text.strip().lower()
    if not wanted:
        return table.head(limit).to_dicts()
    lowered = [pl.col(name).str.to_lowercase() for name in columns]
    begins = pl.any_horizontal([name.str.starts_with(wanted) for name in lowered])
    holds = pl.any_horizontal([name.str.contains(wanted, literal=True) for name in lowered])
    found = table.filter(holds).with_columns(begins=begins).sort("begins", descending=True, maintain_order=True)
    return found.drop("begins").head(limit).to_dicts()
